# caught by: useless, ties, nvlink, network
# Fastest first, but nothing is left out


def best_sets(plans):
    return [names for names, *_ in sorted(plans, key=lambda p: p[2])]
