# caught by: square, rest, costly, middle
# The last segment is too long


def place(n, cost):
    k = max(1, round((n / cost) ** 0.5))
    return [k] * (-(-n // k)) + [1]
