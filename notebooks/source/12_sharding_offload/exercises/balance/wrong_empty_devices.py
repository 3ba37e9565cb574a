# caught by: ends, tight
# The best limit, but devices that stay empty


def balance(costs, devices):
    def cut(limit):
        sizes, filled = [0], 0
        for cost in costs:
            if sizes[-1] and filled + cost > limit:
                sizes.append(0)
                filled = 0
            sizes[-1] += 1
            filled += cost
        return sizes

    low, high = max(costs), sum(costs)
    while low < high:
        limit = (low + high) // 2
        low, high = (low, limit) if len(cut(limit)) <= devices else (limit + 1, high)
    return cut(low)
