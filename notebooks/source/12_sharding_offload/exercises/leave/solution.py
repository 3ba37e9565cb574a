def leave(model, put):
    def go(parameter):
        put(parameter, parameter.grad)
        parameter.grad = None

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(go)
