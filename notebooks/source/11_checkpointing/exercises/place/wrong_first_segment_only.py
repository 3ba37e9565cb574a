# caught by: square, rest, costly, middle
# The right length, but one segment only


def place(n, cost):
    k = max(1, round((n / cost) ** 0.5))
    return [k]
