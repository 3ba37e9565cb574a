# caught by: same, tokens, numbers
# Adds to the gradients of the step before

from contextlib import nullcontext


def train_step(ddp, parts, optimizer):
    count = sum((y != -100).sum() for x, y in parts)
    dist.all_reduce(count)
    for number, (x, y) in enumerate(parts, start=1):
        with nullcontext() if number == len(parts) else ddp.no_sync():
            loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten(), reduction="sum")
            (loss * world_size / count).backward()
    nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
    optimizer.step()
