# caught by: values
# Forgets to return.


def broadcast(x):
    have = 1
    while have < world_size:
        if rank < have:
            dist.send(x, rank + have)
        elif rank < 2 * have:
            dist.recv(x, rank - have)
        have *= 2
