# caught by: products
# A loop over tokens


def grouped(x_NC, experts_NK, weights_NK, up, down):
    rows = []
    for x, experts, weights in zip(x_NC, experts_NK, weights_NK):
        rows.append(sum(w * (F.gelu(x @ up[e]) @ down[e]) for e, w in zip(experts, weights)))
    return torch.stack(rows)
