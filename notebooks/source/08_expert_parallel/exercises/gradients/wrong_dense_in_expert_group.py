# caught by: dense
# Everything over the group of the copies


def sync_gradients(dense, experts, expert_group):
    for parameter in dense + experts:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=expert_group)
        parameter.grad /= world_size
