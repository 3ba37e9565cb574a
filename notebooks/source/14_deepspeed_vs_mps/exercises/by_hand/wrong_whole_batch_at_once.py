# caught by: memory
# The same numbers with the memory of the whole batch


def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    loss = model(tokens, targets)
    loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world_size
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
