def moved(parameters, blocks, what):
    back = parameters + (blocks if what == "parameters" else 0)
    return 2 * parameters, 2 * back
