def gradient_norm(in_parts, whole):
    squares = sum(gradient.square().sum() for gradient in in_parts)
    dist.all_reduce(squares)
    return (squares + sum(gradient.square().sum() for gradient in whole)).sqrt()
