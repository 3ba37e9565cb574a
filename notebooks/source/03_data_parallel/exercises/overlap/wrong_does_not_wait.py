# caught by: mean
# Does not wait


class Overlap:
    def __init__(self, module, buckets):
        self.buckets, self.left = buckets, [len(b) for b in buckets]
        self.sent = []
        for i, b in enumerate(buckets):
            for p in b:
                p.register_post_accumulate_grad_hook(lambda _, i=i: self.ready(i))

    def ready(self, i):
        self.left[i] -= 1
        if self.left[i] == 0:
            bucket = self.buckets[i]
            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size
            dist.all_reduce(flat, async_op=True)
            self.sent.append((bucket, flat.clone()))

    def finish(self):
        for bucket, flat in self.sent:
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = part.view_as(p)
        self.sent, self.left = [], [len(b) for b in self.buckets]
