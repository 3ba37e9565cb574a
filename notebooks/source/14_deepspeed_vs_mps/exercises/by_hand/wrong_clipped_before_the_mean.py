# caught by: same
# Each rank clips its own gradient


def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    total = 0.0
    for x, y in zip(tokens.chunk(2), targets.chunk(2)):
        loss = model(x, y) / 2
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world_size
    optimizer.step()
    return total
