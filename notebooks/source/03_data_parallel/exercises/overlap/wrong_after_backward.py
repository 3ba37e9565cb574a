# caught by: early
# Everything after backward


class Overlap:
    def __init__(self, module, buckets):
        self.buckets = buckets

    def finish(self):
        for bucket in self.buckets:
            flat = torch.cat([p.grad.flatten() for p in bucket]) / world_size
            dist.all_reduce(flat)
            for p, part in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = part.view_as(p)
