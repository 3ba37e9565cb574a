def alpha_beta(times):
    x = [1 / seconds for _, seconds in times]
    y = [size / seconds for size, seconds in times]
    xx, yy = sum(a * a for a in x), sum(b * b for b in y)
    xy = sum(a * b for a, b in zip(x, y))
    determinant = xx * yy - xy * xy
    alpha = (sum(x) * yy - sum(y) * xy) / determinant
    beta = (sum(y) * xx - sum(x) * xy) / determinant
    if alpha < 0:
        return 0.0, sum(y) / yy
    if beta < 0:
        return sum(x) / xx, 0.0
    return alpha, beta
