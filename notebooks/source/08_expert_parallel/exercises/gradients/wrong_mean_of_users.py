# caught by: unused
# Divides by the copies that had tokens: an expert seldom used learns faster


def sync_gradients(dense, experts, expert_group):
    for parameter in dense:
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size
    copies = dist.get_world_size(expert_group)
    for parameter in experts:
        used = torch.tensor([float(parameter.grad is not None)])
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad, group=expert_group)
        dist.all_reduce(used, group=expert_group)
        parameter.grad /= world_size * max(used.item(), 1) / copies
