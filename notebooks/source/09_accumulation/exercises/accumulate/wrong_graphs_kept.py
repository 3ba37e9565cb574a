# caught by: memory
# One backward at the end: all graphs live until then


def accumulate(model, parts):
    loss = sum(model(x, y) for x, y in parts) / len(parts)
    loss.backward()
    return loss.item()
