# caught by: few, ties, nvlink, network


def best_sets(plans):
    return [min(plans, key=lambda p: p[2])[0]]
