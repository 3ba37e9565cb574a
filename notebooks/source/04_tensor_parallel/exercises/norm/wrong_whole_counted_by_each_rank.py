# caught by: both, large


def gradient_norm(in_parts, whole):
    squares = sum(g.square().sum() for g in [*in_parts, *whole])
    dist.all_reduce(squares)
    return squares.sqrt()
