# caught by: bytes
# no_sync around backward alone: DDP has decided in the forward

from contextlib import nullcontext


def train_step(ddp, parts, optimizer):
    optimizer.zero_grad()
    count = sum((y != -100).sum() for x, y in parts)
    dist.all_reduce(count)
    for number, (x, y) in enumerate(parts, start=1):
        loss = F.cross_entropy(ddp(x).flatten(0, 1), y.flatten(), reduction="sum")
        with nullcontext() if number == len(parts) else ddp.no_sync():
            (loss * world_size / count).backward()
    nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
    optimizer.step()
