# caught by: bytes


def gradient_norm(in_parts, whole):
    squares = 0
    for g in in_parts:
        parts = [torch.empty_like(g) for _ in range(world_size)]
        dist.all_gather(parts, g)
        squares = squares + sum(p.square().sum() for p in parts)
    return (squares + sum(g.square().sum() for g in whole)).sqrt()
