# caught by: bytes
# Tells everybody every choice


def splits(experts, num_experts):
    everyone = [None] * world_size
    dist.all_gather_object(everyone, experts)
    table = [
        (theirs.flatten() // (num_experts // world_size)).bincount(minlength=world_size).tolist()
        for theirs in everyone
    ]
    return table[rank], [of_rank[rank] for of_rank in table]
