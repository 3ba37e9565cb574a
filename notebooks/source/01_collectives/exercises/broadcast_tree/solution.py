def broadcast(x):
    have = 1  # ranks 0 ... have - 1 have the data
    while have < world_size:
        if rank < have and rank + have < world_size:
            dist.send(x, rank + have)
        elif have <= rank < 2 * have:
            dist.recv(x, rank - have)
        have *= 2
    return x
