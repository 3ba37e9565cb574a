# caught by: gradients, bytes
# Forward only: the ranks learn nothing


def relay(layer, x):
    if rank > 0:
        dist.recv(x, rank - 1)
    y = layer(x)
    dist.send(y.detach(), (rank + 1) % world_size)
    if rank > 0:
        return 0.0
    dist.recv(y.detach(), world_size - 1)
    return y.square().mean()
