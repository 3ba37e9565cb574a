# caught by: calls
# One message for each parameter


class Overlap:
    def __init__(self, module, buckets):
        self.works = []
        for p in module.parameters():
            p.register_post_accumulate_grad_hook(self.ready)

    def ready(self, p):
        p.grad /= world_size
        self.works.append(dist.all_reduce(p.grad, async_op=True))

    def finish(self):
        for work in self.works:
            work.wait()
        self.works = []
