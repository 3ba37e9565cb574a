# caught by: tokens, shared_rank, empty, bytes
# A row for each choice, as in the simple version


def dispatch(x, experts, num_experts):
    here = num_experts // world_size
    chosen = experts.flatten()
    copies = chosen.argsort(stable=True)
    send = (chosen // here).bincount(minlength=world_size)
    receive = torch.empty_like(send)
    dist.all_to_all_single(receive, send)
    numbers = chosen[copies]
    tokens = x.new_empty(int(receive.sum()), x.size(1))
    which = numbers.new_empty(len(tokens))
    for out, rows in ((tokens, x[copies // experts.size(1)]), (which, numbers)):
        dist.all_to_all_single(out, rows, receive.tolist(), send.tolist())
    return tokens, F.one_hot(which - rank * here, here).bool()
