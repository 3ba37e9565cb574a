# caught by: square, rest, costly, middle


def place(n, cost):
    return [n]
