def dispatch(x, experts, num_experts):
    here = num_experts // world_size
    chosen = torch.zeros(len(x), num_experts, dtype=torch.bool).scatter(1, experts, True)
    chosen = chosen.view(len(x), world_size, here).transpose(0, 1)  # rank, token, its experts
    to_rank, token = chosen.any(2).nonzero(as_tuple=True)  # sorted by rank, then by token
    send = to_rank.bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    arrived = []
    for rows in (x[token], chosen[to_rank, token].to(torch.uint8)):
        came = rows.new_empty(int(receive.sum()), rows.size(1))
        dist.all_to_all_single(came, rows.contiguous(), receive.tolist(), send.tolist())
        arrived.append(came)
    return arrived[0], arrived[1].bool()
