# caught by: forward
# The last expert of a token overwrites the others


def grouped(x_NC, experts_NK, weights_NK, up, down):
    out = torch.zeros_like(x_NC)
    for e in range(len(up)):
        token, choice = torch.where(experts_NK == e)
        out[token] = weights_NK[token, choice, None] * (F.gelu(x_NC[token] @ up[e]) @ down[e])
    return out
