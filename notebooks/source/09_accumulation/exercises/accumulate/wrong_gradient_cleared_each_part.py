# caught by: gradient
# Clears what it has added up


def accumulate(model, parts):
    total = 0.0
    for x, y in parts:
        model.zero_grad()
        loss = model(x, y) / len(parts)
        loss.backward()
        total += loss.item()
    return total
