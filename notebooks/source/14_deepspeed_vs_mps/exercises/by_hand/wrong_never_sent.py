# caught by: replicas
# Each rank for itself


def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    total = 0.0
    for x, y in zip(tokens.chunk(2), targets.chunk(2)):
        loss = model(x, y) / 2
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total
