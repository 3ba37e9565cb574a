def x_in_ranks():
    return [9, 8, 107, 6]
