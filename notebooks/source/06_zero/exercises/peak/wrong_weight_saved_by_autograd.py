# caught by: between, peak
# autograd saves every gathered weight


class Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shard):
        row = torch.empty(shard.numel() * world_size)
        dist.all_gather_single(row, shard.detach())
        return row

    @staticmethod
    def backward(ctx, grad):
        part = torch.empty(grad.numel() // world_size)
        dist.reduce_scatter_single(part, grad.contiguous())
        return part / world_size


def linear(x, shard):
    return x @ Gather.apply(shard).view(-1, x.shape[-1]).T
