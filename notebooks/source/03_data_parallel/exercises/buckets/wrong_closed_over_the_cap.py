# caught by: cap
# Closed once it is over the cap, as DDP does


def assign(sizes, cap):
    buckets, filled = [[]], 0
    for p in reversed(range(len(sizes))):
        if filled >= cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p)
        filled += sizes[p]
    return buckets
