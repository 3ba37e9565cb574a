# caught by: own, changed
# one x for all ranks


def x_in_ranks():
    return [9, 9, 109, 9]
