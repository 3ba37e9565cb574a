# caught by: bytes
# Looks like half; on Gloo it is an all-reduce inside.


def reduce_scatter(x):
    mine = torch.empty(len(x) // world_size)
    dist.reduce_scatter(mine, list(x.chunk(world_size)))
    return mine
