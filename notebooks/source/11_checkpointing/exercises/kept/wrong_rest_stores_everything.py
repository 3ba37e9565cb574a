# caught by: rest
# Layers left over taken to store everything


def bytes_kept(layers, width, tokens, k):
    one = 4 * width * tokens
    if k == 0:
        return layers * 16 * one
    return (layers // k + layers % k * 16) * one
