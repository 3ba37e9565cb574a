# caught by: calls, values, none
# With each use of a layer, not with each parameter


def leave(model, put):
    def go(layer, *_):
        put(layer.weight, layer.weight.grad)
        layer.weight.grad = None

    for layer in model:
        layer.register_full_backward_hook(go)
