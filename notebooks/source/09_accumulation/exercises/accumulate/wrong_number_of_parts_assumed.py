# caught by: gradient, loss
# Divides by 4, however many parts there are


def accumulate(model, parts):
    total = 0.0
    for x, y in parts:
        loss = model(x, y) / 4
        loss.backward()
        total += loss.item()
    return total
