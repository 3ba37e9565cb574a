# caught by: sum, other
# all_reduce returns nothing: the sum is in x


def rank_sum(number):
    x = torch.tensor([number])
    return dist.all_reduce(x)
