# caught by: rounds, root
# Rank 0 serves everybody.


def broadcast(x):
    if rank == 0:
        for k in range(1, world_size):
            dist.send(x, k)
    else:
        dist.recv(x, 0)
    return x
