def sync_gradients(dense, experts, expert_group):
    for parameters, group in ((dense, None), (experts, expert_group)):
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= world_size
