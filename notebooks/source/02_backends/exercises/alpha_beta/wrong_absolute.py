# caught by: large
def alpha_beta(times):
    sizes, seconds = zip(*times)
    mean, middle = sum(sizes) / len(times), sum(seconds) / len(times)
    slope = sum((a - mean) * (b - middle) for a, b in times) / sum((a - mean) ** 2 for a in sizes)
    return max(0.0, middle - slope * mean), slope
