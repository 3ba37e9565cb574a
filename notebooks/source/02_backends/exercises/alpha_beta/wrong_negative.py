# caught by: flat
def alpha_beta(times):
    x = [1 / seconds for _, seconds in times]
    y = [size / seconds for size, seconds in times]
    xx, yy = sum(a * a for a in x), sum(b * b for b in y)
    xy = sum(a * b for a, b in zip(x, y))
    determinant = xx * yy - xy * xy
    alpha = (sum(x) * yy - sum(y) * xy) / determinant
    return alpha, (sum(y) * xx - sum(x) * xy) / determinant
