# caught by: same, memory
# The stub: the whole batch at once, a sum over the ranks, no clipping


def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    loss = model(tokens, targets)
    loss.backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
    optimizer.step()
    return loss.item()
