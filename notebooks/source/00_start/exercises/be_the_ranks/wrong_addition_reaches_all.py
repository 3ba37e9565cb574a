# caught by: own
# what rank 2 adds reaches the others


def x_in_ranks():
    return [109, 108, 107, 106]
