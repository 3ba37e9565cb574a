# caught by: small, bytes
# all values to everyone


def mean_of_parts(values):
    parts = [None] * world_size
    dist.all_gather_object(parts, values)
    return torch.cat(parts).mean().item()
