# caught by: ties
# Equal peaks kept


def best_sets(plans):
    found, lowest = [], float("inf")
    for names, peak, seconds in sorted(plans, key=lambda p: (p[2], p[1], len(p[0]))):
        if peak <= lowest:
            found.append(names)
            lowest = peak
    return found
