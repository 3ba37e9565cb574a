# caught by: loss, bytes
# As in the lesson: the loss where the layers end


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
        y.backward(grad)
    if rank > 0:
        dist.send(x.grad, rank - 1)
    return loss
