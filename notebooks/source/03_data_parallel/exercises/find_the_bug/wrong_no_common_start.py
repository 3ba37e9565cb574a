# caught by: replicas, large, uneven, several
# Nobody starts from the same model


def train_ranks(model, batches, lr):
    for parameter in model.parameters():
        pass
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches:
        optimizer.zero_grad()
        rows = torch.tensor(len(y))
        dist.all_reduce(rows)
        loss = F.mse_loss(model(x), y) * len(y) / rows
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss.detach()
        dist.all_reduce(loss)
        scheduler.step(loss.item())
