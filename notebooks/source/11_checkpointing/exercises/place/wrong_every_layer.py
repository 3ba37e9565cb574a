# caught by: square, rest, middle


def place(n, cost):
    return [1] * n
