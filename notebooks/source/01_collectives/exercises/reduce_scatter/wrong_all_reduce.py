# caught by: bytes
# Right, and sends twice what is needed.


def reduce_scatter(x):
    total = x.clone()
    dist.all_reduce(total)
    return total.chunk(world_size)[rank].clone()
