# caught by: empty
# Numbers the pieces, not the experts


def grouped(x_NC, experts_NK, weights_NK, up, down):
    chosen = experts_NK.flatten()
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(up))
    counts = counts[counts > 0].tolist()
    tokens = order // experts_NK.size(1)
    pieces = x_NC[tokens].split(counts)
    said = torch.cat([F.gelu(x @ up[e]) @ down[e] for e, x in enumerate(pieces)])
    weighted = said * weights_NK.flatten()[order, None]
    return torch.zeros_like(x_NC).index_add(0, tokens, weighted)
