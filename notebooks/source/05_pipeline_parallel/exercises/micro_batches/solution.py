def fewest(p, limit):
    m = 1
    while (p - 1) / (m + p - 1) > limit:
        m += 1
    return m
