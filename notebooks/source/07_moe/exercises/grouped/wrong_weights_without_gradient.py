# caught by: gradients
# The router would learn nothing


def grouped(x_NC, experts_NK, weights_NK, up, down):
    out = torch.zeros_like(x_NC)
    for e in range(len(up)):
        token, choice = torch.where(experts_NK == e)
        weight = weights_NK.detach()[token, choice, None]
        out = out.index_add(0, token, weight * (F.gelu(x_NC[token] @ up[e]) @ down[e]))
    return out
