def assign(sizes, cap):
    buckets, filled = [[]], 0
    for position in reversed(range(len(sizes))):
        if buckets[-1] and filled + sizes[position] > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(position)
        filled += sizes[position]
    return buckets
