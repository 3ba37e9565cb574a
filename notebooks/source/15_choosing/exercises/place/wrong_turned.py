# caught by: small, flat, large
# Neighbours along data instead of along tensor


def place(rank, pipeline, tensor):
    data, rest = divmod(rank, pipeline * tensor)
    return rest % tensor, rest // tensor, data
