# caught by: parameters
# Everything twice


def moved(parameters, blocks, what):
    back = parameters + (parameters if what == "parameters" else 0)
    return 2 * parameters, 2 * back
