# caught by: receive, empty
# Takes for granted that as much comes as goes


def splits(experts, num_experts):
    owners = experts.flatten() // (num_experts // world_size)
    send = owners.bincount(minlength=world_size).tolist()
    return send, send
