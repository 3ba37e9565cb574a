# caught by: memory
# All in one piece


def token_gradients(model, parts):
    x, y = (torch.cat(halves) for halves in zip(*parts))
    loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    return loss.item()
