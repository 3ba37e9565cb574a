def place(rank, pipeline, tensor):
    data, rest = divmod(rank, pipeline * tensor)
    return data, rest // tensor, rest % tensor
