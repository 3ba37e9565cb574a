# caught by: none, memory
# The hook of the tensor: runs before .grad is there


def leave(model, put):
    for parameter in model.parameters():
        parameter.register_hook(lambda grad, p=parameter: put(p, grad))
