# caught by: small, flat, large
# Names pipeline and tensor the wrong way round


def place(rank, pipeline, tensor):
    data, rest = divmod(rank, pipeline * tensor)
    return data, rest % tensor, rest // tensor
