# caught by: bytes
# Every rank sends its counts to every other


def update_bias(bias_E, counts_E):
    parts = [torch.empty_like(counts_E) for _ in range(world_size)]
    dist.all_gather(parts, counts_E)
    counts_E = torch.stack(parts).sum(0)
    bias_E += 0.03 * (1 - counts_E / counts_E.float().mean())
