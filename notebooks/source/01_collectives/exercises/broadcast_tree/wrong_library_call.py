# caught by: only


def broadcast(x):
    dist.broadcast(x, src=0)
    return x
