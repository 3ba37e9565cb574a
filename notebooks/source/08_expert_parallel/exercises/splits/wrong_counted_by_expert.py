# caught by: send, receive, empty
# A number for each expert


def splits(experts, num_experts):
    send = experts.flatten().bincount(minlength=num_experts)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    return send.tolist(), receive.tolist()
