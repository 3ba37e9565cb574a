def all_gather(part, window):
    n = len(part)
    for other in range(world_size):
        window.put(other, rank * n, part)
    window.barrier()
    found = window.mine[: world_size * n].clone()
    window.barrier()
    return found
