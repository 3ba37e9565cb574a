# caught by: balanced, agree
# compares with the mean: differences cancel out in the ranks in the middle


def same_everywhere(x):
    total = x.clone()
    dist.all_reduce(total)
    return torch.equal(total / world_size, x)
