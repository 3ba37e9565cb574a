# caught by: experts, everywhere, unused
# "Experts are not copied": true for as many ranks as experts are spread over


def sync_gradients(dense, experts, expert_group):
    for parameter in dense:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size
    for parameter in experts:
        if parameter.grad is not None:
            parameter.grad /= world_size
