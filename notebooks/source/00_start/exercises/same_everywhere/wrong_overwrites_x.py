# caught by: kept
# overwrites x


def same_everywhere(x):
    mine = x.clone()
    dist.broadcast(x, src=0)
    different = torch.tensor(float(not torch.equal(x, mine)))
    dist.all_reduce(different)
    return different.item() == 0
