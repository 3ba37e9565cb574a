# caught by: each, groups, rest
# What comes alive in backward counted as well


def bytes_kept(layers, width, tokens, k):
    one = 4 * width * tokens
    if k == 0:
        return layers * 16 * one
    return -(-layers // k) * one + k * 16 * one
