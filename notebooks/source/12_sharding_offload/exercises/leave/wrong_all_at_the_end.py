# caught by: memory
# When the whole backward is over


def leave(model, put):
    left = len(list(model.parameters()))

    def go(parameter):
        nonlocal left
        left -= 1
        if left == 0:
            for p in model.parameters():
                put(p, p.grad)
                p.grad = None
            left = len(list(model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(go)
