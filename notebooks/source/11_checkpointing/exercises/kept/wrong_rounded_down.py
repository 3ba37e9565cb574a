# caught by: rest


def bytes_kept(layers, width, tokens, k):
    one = 4 * width * tokens
    if k == 0:
        return layers * 16 * one
    return layers // k * one
