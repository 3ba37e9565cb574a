# caught by: gradients
# Ones in place of the gradient that has arrived


def relay(layer, x):
    last, after = world_size - 1, (rank + 1) % world_size
    if rank > 0:
        x = torch.empty_like(x)
        dist.recv(x, rank - 1)
        x.requires_grad_()
    y = layer(x)
    dist.send(y.detach(), after)
    loss = 0.0
    if rank == 0:
        result = torch.empty_like(y)
        dist.recv(result, last)
        result.requires_grad_()
        loss = result.square().mean()
        loss.backward()
        dist.send(result.grad, last)
    grad = torch.empty_like(y)
    dist.recv(grad, after)
    y.backward(torch.ones_like(y))
    if rank > 0:
        dist.send(x.grad, rank - 1)
    return loss
