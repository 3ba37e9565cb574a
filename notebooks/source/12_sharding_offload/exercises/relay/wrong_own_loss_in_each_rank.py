# caught by: gradients
# Each rank's own result taken for the loss


def relay(layer, x):
    last = rank == world_size - 1
    if rank > 0:
        x = torch.empty_like(x)
        dist.recv(x, rank - 1)
        x.requires_grad_()
    y = layer(x)
    loss = 0.0
    if last:
        loss = y.square().mean()
        loss.backward()
    else:
        dist.send(y.detach(), rank + 1)
        grad = torch.empty_like(y)
        dist.recv(grad, rank + 1)
        y.square().mean().backward()
    if rank > 0:
        dist.send(x.grad, rank - 1)
    return loss
