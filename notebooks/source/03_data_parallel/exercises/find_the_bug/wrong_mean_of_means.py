# caught by: uneven
# Mean of means


def train_ranks(model, batches, lr):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches:
        optimizer.zero_grad()
        rows = torch.tensor(len(y))
        dist.all_reduce(rows)
        loss = F.mse_loss(model(x), y) / world_size
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        scheduler.step(loss.item())
