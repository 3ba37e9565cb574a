# caught by: both, large


def gradient_norm(in_parts, whole):
    norm = sum(g.square().sum() for g in in_parts).sqrt()
    dist.all_reduce(norm)
    return norm + sum(g.square().sum() for g in whole).sqrt()
