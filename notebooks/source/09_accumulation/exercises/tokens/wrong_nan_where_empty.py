# caught by: loss
# The mean, weighted: the loss is nan where there is none


def token_gradients(model, parts):
    total = 0.0
    count = sum((y != -100).sum() for x, y in parts)
    for x, y in parts:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss = loss * (y != -100).sum() / count
        loss.backward()
        total += loss.item()
    return total
