# caught by: bytes
# Right values by twice the bytes and more


def sync_gradients(dense, experts, expert_group):
    for parameters, group in ((dense, None), (experts, expert_group)):
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parts = [torch.empty_like(grad) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, grad.contiguous(), group=group)
            parameter.grad = sum(parts) / world_size
