# caught by: none, memory
# Put, and kept


def leave(model, put):
    def go(parameter):
        put(parameter, parameter.grad)

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(go)
