# caught by: mean


def mean(number):
    x = torch.tensor([number])
    dist.all_reduce(x)
    return x.item()
