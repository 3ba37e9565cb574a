# caught by: memory
# One backward at the end: all graphs live until then


def train_step(ddp, parts, optimizer):
    optimizer.zero_grad()
    count = sum((y != -100).sum() for x, y in parts)
    dist.all_reduce(count)
    losses = [F.cross_entropy(ddp(x).flatten(0, 1), y.flatten(), reduction="sum") for x, y in parts]
    (sum(losses) * world_size / count).backward()
    nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
    optimizer.step()
