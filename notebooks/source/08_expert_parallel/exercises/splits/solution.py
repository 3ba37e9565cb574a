def splits(experts, num_experts):
    owners = experts.flatten() // (num_experts // world_size)
    send = owners.bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    return send.tolist(), receive.tolist()
