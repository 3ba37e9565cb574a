# caught by: optimizer, parameters


def moved(parameters, blocks, what):
    back = parameters + (blocks if what == "parameters" else 0)
    return 4 * parameters, 4 * back
