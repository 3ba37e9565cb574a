# caught by: loss
# Returns the last micro-batch's loss


def train_step(model, optimizer, tokens, targets):
    optimizer.zero_grad()
    for x, y in zip(tokens.chunk(2), targets.chunk(2)):
        loss = model(x, y)
        (loss / 2).backward()
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= world_size
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()
