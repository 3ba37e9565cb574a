# caught by: order
def all_gather(part, window):
    n = len(part)
    for step in range(world_size):
        window.put((rank + step) % world_size, step * n, part)
    window.barrier()
    found = window.mine[: world_size * n].clone()
    window.barrier()
    return found
