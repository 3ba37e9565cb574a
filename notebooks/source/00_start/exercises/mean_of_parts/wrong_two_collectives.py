# caught by: small
# right, in two collectives


def mean_of_parts(values):
    total = values.sum()
    count = torch.tensor(float(len(values)))
    dist.all_reduce(total)
    dist.all_reduce(count)
    return (total / count).item()
