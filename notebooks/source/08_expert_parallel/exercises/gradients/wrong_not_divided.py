# caught by: experts, alone, everywhere, unused
# Experts' gradients are added up only


def sync_gradients(dense, experts, expert_group):
    for parameter in dense:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size
    for parameter in experts:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=expert_group)
