# caught by: bytes
# Right numbers, twice the bytes


def train_step(model, optimizer, tokens, targets):
    total, sums = 0.0, [torch.zeros_like(p) for p in model.parameters()]
    for x, y in zip(tokens.chunk(2), targets.chunk(2)):
        optimizer.zero_grad()
        loss = model(x, y) / 2
        loss.backward()
        total += loss.item()
        for p, done in zip(model.parameters(), sums):
            dist.all_reduce(p.grad)
            done += p.grad / world_size
    for p, done in zip(model.parameters(), sums):
        p.grad = done
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total
