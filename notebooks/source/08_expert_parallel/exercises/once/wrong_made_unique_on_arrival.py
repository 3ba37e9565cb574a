# caught by: bytes
# Sends every copy and drops the second one where it arrives


def dispatch(x, experts, num_experts):
    here, K = num_experts // world_size, experts.size(1)
    chosen = experts.flatten()
    copies = (chosen // here).argsort(stable=True)  # by rank, then by token
    send = (chosen // here).bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    labels = torch.stack([copies // K, chosen[copies], torch.full_like(copies, rank)], dim=1)
    tokens = x.new_empty(int(receive.sum()), x.size(1))
    came = labels.new_empty(len(tokens), 3)
    for out, rows in ((tokens, x[copies // K]), (came, labels)):
        dist.all_to_all_single(out, rows, receive.tolist(), send.tolist())
    kept, mask, last = [], [], None
    for row, (token, expert, source) in enumerate(came.tolist()):
        if (source, token) != last:
            kept.append(row)
            mask.append([False] * here)
            last = (source, token)
        mask[-1][expert - rank * here] = True
    return tokens[kept], torch.tensor(mask, dtype=torch.bool).view(len(kept), here)
