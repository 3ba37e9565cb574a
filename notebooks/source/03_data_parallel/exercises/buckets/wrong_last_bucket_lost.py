# caught by: once
# The last bucket is never closed


def assign(sizes, cap):
    buckets, one = [], []
    for p in reversed(range(len(sizes))):
        if one and sum(sizes[q] for q in one) + sizes[p] > cap:
            buckets.append(one)
            one = []
        one.append(p)
    return buckets
