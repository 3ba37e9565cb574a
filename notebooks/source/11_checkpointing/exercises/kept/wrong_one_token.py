# caught by: none, each, groups, rest


def bytes_kept(layers, width, tokens, k):
    one = 4 * width
    if k == 0:
        return layers * 16 * one
    return -(-layers // k) * one
