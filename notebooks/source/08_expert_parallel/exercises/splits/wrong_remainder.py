# caught by: send, receive, empty
# Deals experts out like cards


def splits(experts, num_experts):
    send = (experts.flatten() % world_size).bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    return send.tolist(), receive.tolist()
