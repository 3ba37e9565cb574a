# caught by: own, changed
# the sum, from which nobody takes its own x


def x_in_ranks():
    return [10, 10, 110, 10]
