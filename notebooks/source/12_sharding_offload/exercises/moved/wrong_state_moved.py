# caught by: optimizer, parameters
# Master copy and moments sent along


def moved(parameters, blocks, what):
    back = parameters + (blocks if what == "parameters" else 0)
    return 14 * parameters, 2 * back
