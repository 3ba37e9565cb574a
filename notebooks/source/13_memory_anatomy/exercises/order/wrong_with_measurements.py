# caught by: few, useless, ties, nvlink, network
# Whole plans, not their techniques


def best_sets(plans):
    found, lowest = [], float("inf")
    for names, peak, seconds in sorted(plans, key=lambda p: (p[2], p[1], len(p[0]))):
        if peak < lowest:
            found.append((names, peak, seconds))
            lowest = peak
    return found
