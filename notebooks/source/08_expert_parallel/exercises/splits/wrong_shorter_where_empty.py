# caught by: empty
# Leaves out ranks that nobody wants


def splits(experts, num_experts):
    owners = experts.flatten() // (num_experts // world_size)
    found, counts = owners.unique(return_counts=True)
    send = counts
    if len(found) < world_size:
        return send.tolist(), send.tolist()
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    return send.tolist(), receive.tolist()
