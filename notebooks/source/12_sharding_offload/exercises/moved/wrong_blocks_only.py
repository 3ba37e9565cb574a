# caught by: parameters
# What is in no block forgotten


def moved(parameters, blocks, what):
    back = 2 * blocks if what == "parameters" else parameters
    return 2 * parameters, 2 * back
