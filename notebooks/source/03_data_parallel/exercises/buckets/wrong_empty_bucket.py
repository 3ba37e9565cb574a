# caught by: calls
# An empty bucket in front of a parameter that is too large


def assign(sizes, cap):
    buckets, filled = [[]], 0
    for p in reversed(range(len(sizes))):
        if filled + sizes[p] > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p)
        filled += sizes[p]
    return buckets
