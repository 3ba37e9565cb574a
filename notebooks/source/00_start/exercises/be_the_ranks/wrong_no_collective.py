# caught by: own, changed
# no rank gets anything from another


def x_in_ranks():
    return [0, 0, 100, 0]
