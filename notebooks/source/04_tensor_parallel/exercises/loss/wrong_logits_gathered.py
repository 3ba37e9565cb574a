# caught by: bytes
# Joins the logits: right, and V numbers a token


def vocab_loss(logits, targets, vocab_size):
    parts = [torch.empty_like(logits) for _ in range(world_size)]
    dist.all_gather(parts, logits)
    whole = torch.cat(parts, 1).requires_grad_()
    value = F.cross_entropy(whole[:, :vocab_size], targets)
    value.backward()
    return value.item(), whole.grad.chunk(world_size, 1)[rank].contiguous()
