# caught by: both, large


def gradient_norm(in_parts, whole):
    return sum(g.square().sum() for g in [*in_parts, *whole]).sqrt()
