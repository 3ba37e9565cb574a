# caught by: unequal, rows, empty, loss
# Counts the padding


def token_gradients(model, parts):
    total = 0.0
    count = sum(y.numel() for x, y in parts)
    for x, y in parts:
        logits = model(x).flatten(0, 1)
        loss = F.cross_entropy(logits, y.flatten(), reduction="sum") / count
        loss.backward()
        total += loss.item()
    return total
