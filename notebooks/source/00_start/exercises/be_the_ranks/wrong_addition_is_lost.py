# caught by: changed
# what rank 2 adds after the collective is lost


def x_in_ranks():
    return [9, 8, 7, 6]
