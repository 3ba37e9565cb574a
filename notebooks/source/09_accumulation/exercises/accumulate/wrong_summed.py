# caught by: gradient
# Not divided


def accumulate(model, parts):
    total = 0.0
    for x, y in parts:
        loss = model(x, y)
        loss.backward()
        total += loss.item()
    return total / len(parts)
