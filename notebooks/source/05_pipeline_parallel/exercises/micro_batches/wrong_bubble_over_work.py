# caught by: few, many, exact, deep


def fewest(p, limit):
    m = 1
    while (p - 1) / m > limit:
        m += 1
    return m
