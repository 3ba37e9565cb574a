def balance(costs, devices):
    def cut(limit):
        sizes, filled = [0], 0
        for i, cost in enumerate(costs):
            left = len(costs) - i
            full = filled + cost > limit or left <= devices - len(sizes)
            if sizes[-1] and full:
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
