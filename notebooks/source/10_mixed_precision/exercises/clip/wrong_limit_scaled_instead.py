# caught by: torch, ours
# Clips to a scaled limit, and never learns the true norm


def clipped_step(loss, parameters, optimizer, scaler, max_norm):
    optimizer.zero_grad()
    scaler.scale(loss).backward()
    norm = nn.utils.clip_grad_norm_(parameters, max_norm * scaler.get_scale())
    scaler.step(optimizer)
    scaler.update()
    return norm
