def place(n, cost):
    k = max(1, round((n / cost) ** 0.5))
    return [min(k, n - start) for start in range(0, n, k)]
