# caught by: between, peak
# Saves the whole weight instead of the shard


class GatheredLinear(torch.autograd.Function):
    @staticmethod
    def gather(x, shard):
        row = torch.empty(shard.numel() * world_size)
        dist.all_gather_single(row, shard.detach())
        return row.view(-1, x.shape[-1])

    @staticmethod
    def forward(ctx, x, shard):
        weight = GatheredLinear.gather(x, shard)
        ctx.save_for_backward(x, shard)
        ctx.weight = weight
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad_y):
        x, shard = ctx.saved_tensors
        grad_x = grad_y @ ctx.weight
        grad_shard = torch.empty_like(shard)
        dist.reduce_scatter_single(grad_shard, (grad_y.T @ x).flatten())
        return grad_x, grad_shard / world_size


def linear(x, shard):
    return GatheredLinear.apply(x, shard)
