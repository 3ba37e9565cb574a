# caught by: memory
# Copies the matrices of the chosen experts for every token


def grouped(x_NC, experts_NK, weights_NK, up, down):
    inside = F.gelu(torch.einsum("nc,nkcf->nkf", x_NC, up[experts_NK]))
    said = torch.einsum("nkf,nkfc->nkc", inside, down[experts_NK])
    return (said * weights_NK[..., None]).sum(1)
