# caught by: parameters
# Fetched once only


def moved(parameters, blocks, what):
    back = parameters + 0
    return 2 * parameters, 2 * back
