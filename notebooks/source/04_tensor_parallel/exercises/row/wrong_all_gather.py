# caught by: calls, bytes


def row_parallel(x, weight, bias):
    y = x @ weight.T
    parts = [torch.empty_like(y) for _ in range(world_size)]
    dist.all_gather(parts, y)
    return sum(parts) + bias
