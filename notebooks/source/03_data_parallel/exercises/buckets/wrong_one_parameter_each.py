# caught by: calls


def assign(sizes, cap):
    return [[p] for p in reversed(range(len(sizes)))]
