class Overlap:
    def __init__(self, module, buckets):
        self.buckets, self.works = buckets, []
        self.missing = [len(bucket) for bucket in buckets]
        for number, bucket in enumerate(buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(
                    lambda _, number=number: self.ready(number)
                )

    def ready(self, number):
        self.missing[number] -= 1
        while len(self.works) < len(self.buckets) and not self.missing[len(self.works)]:
            bucket = self.buckets[len(self.works)]
            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size
            self.works.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self):
        for bucket, (flat, work) in zip(self.buckets, self.works):
            work.wait()
            for parameter, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                parameter.grad = part.view_as(parameter)
        self.works, self.missing = [], [len(bucket) for bucket in self.buckets]
