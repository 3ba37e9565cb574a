# caught by: bytes
# Every token to every rank, which keeps what it wants


def dispatch(x, experts, num_experts):
    here = num_experts // world_size
    everyone = [None] * world_size
    dist.all_gather_object(everyone, (x, experts))
    tokens, masks = [], []
    for theirs, chosen in everyone:
        mask = torch.zeros(len(theirs), num_experts, dtype=torch.bool).scatter(1, chosen, True)
        mask = mask[:, rank * here : (rank + 1) * here]
        tokens.append(theirs[mask.any(1)])
        masks.append(mask[mask.any(1)])
    return torch.cat(tokens), torch.cat(masks)
