# caught by: flat, large
# Right where the sides are equal


def place(rank, pipeline, tensor):
    data, rest = divmod(rank, pipeline * tensor)
    return data, rest // pipeline, rest % pipeline
