# caught by: costly, middle
# The root, whatever a layer stores


def place(n, cost):
    k = max(1, round(n**0.5))
    return [min(k, n - start) for start in range(0, n, k)]
