# caught by: rounds
# A chain: one message a rank, but one after the other.


def broadcast(x):
    if rank > 0:
        dist.recv(x, rank - 1)
    if rank < world_size - 1:
        dist.send(x, rank + 1)
    return x
