# caught by: order
# From the front: the first bucket is the last one to be ready


def assign(sizes, cap):
    buckets, filled = [[]], 0
    for p, size in enumerate(sizes):
        if buckets[-1] and filled + size > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p)
        filled += size
    return buckets
