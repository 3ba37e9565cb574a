# caught by: flat, large
# Only two copies


def place(rank, pipeline, tensor):
    return rank // 4, rank // 2 % 2, rank % 2
