# caught by: bytes


def mean_over_ranks(x):
    rows = torch.zeros(world_size, 16)
    rows[rank, : len(x)], rows[rank, 15] = x, len(x)
    dist.all_reduce(rows)
    return rows[:, :15].sum() / rows[:, 15].sum()
