# caught by: unequal, rows, empty, loss
# Mean of means


def token_gradients(model, parts):
    total = 0.0
    for x, y in parts:
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) / len(parts)
        loss.backward()
        total += loss.item()
    return total
