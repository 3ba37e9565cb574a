# caught by: loss, gradients, bytes
# Each rank for itself: no byte too many, and none at all


def relay(layer, x):
    loss = layer(x).square().mean()
    loss.backward()
    return loss if rank == 0 else 0.0
