# caught by: experts, alone, unused, bytes
# Experts of different ranks are different, and are mixed here


def sync_gradients(dense, experts, expert_group):
    for parameter in dense + experts:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size
