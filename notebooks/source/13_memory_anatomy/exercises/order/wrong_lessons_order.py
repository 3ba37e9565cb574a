# caught by: few, useless, ties, nvlink, network
# The recommended order, whatever the prices


def best_sets(plans):
    order, found = ("mixed", "accumulate", "checkpoint", "zero1"), []
    known = {names for names, *_ in plans}
    for n in range(len(order) + 1):
        if order[:n] in known:
            found.append(order[:n])
    return found
