# caught by: hang
# a rank without values stays away, and the others wait


def mean_of_parts(values):
    if len(values) == 0:
        return 0.0
    both = torch.tensor([values.sum(), len(values)])
    dist.all_reduce(both)
    return (both[0] / both[1]).item()
