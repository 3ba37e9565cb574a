# caught by: multiplications
# All experts on all tokens, weight zero where not chosen


def grouped(x_NC, experts_NK, weights_NK, up, down):
    all_weights = x_NC.new_zeros(len(x_NC), len(up)).scatter(1, experts_NK, weights_NK)
    said = [F.gelu(x_NC @ up[e]) @ down[e] for e in range(len(up))]
    return sum(all_weights[:, e, None] * y for e, y in enumerate(said))
