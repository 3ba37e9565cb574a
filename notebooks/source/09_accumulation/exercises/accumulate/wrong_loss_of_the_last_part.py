# caught by: loss
# Returns the last micro-batch's loss


def accumulate(model, parts):
    for x, y in parts:
        loss = model(x, y)
        (loss / len(parts)).backward()
    return loss.item()
