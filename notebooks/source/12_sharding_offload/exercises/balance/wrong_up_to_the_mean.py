# caught by: ends, tight
# Filled up to the mean; the last one takes what is left


def balance(costs, devices):
    mean, sizes, filled = sum(costs) / devices, [0], 0
    for i, cost in enumerate(costs):
        if filled + cost > mean and sizes[-1] and len(sizes) < devices:
            sizes.append(0)
            filled = 0
        sizes[-1] += 1
        filled += cost
    return sizes + [0] * (devices - len(sizes))
