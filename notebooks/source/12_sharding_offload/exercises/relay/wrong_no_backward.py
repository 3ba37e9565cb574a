# caught by: gradients
# Forward only: the ranks before the last learn nothing


def relay(layer, x):
    if rank > 0:
        dist.recv(x, rank - 1)
    y = layer(x)
    if rank < world_size - 1:
        dist.send(y.detach(), rank + 1)
        return 0.0
    loss = y.square().mean()
    loss.backward()
    return loss
