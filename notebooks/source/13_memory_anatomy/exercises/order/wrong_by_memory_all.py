# caught by: few, useless, ties, nvlink, network
# Smallest first


def best_sets(plans):
    return [names for names, *_ in sorted(plans, key=lambda p: p[1])]
