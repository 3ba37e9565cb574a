# caught by: send, receive, empty
# Counts tokens, although each of their copies travels


def splits(experts, num_experts):
    owners = experts // (num_experts // world_size)
    send = torch.stack([(owners == r).any(1).sum() for r in range(world_size)])
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    return send.tolist(), receive.tolist()
