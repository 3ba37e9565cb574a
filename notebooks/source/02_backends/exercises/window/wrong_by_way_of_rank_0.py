# caught by: puts
def all_gather(part, window):
    n = len(part)
    window.put(0, rank * n, part)
    window.barrier()
    if rank == 0:
        whole = window.mine[: world_size * n].clone()
        for other in range(1, world_size):
            window.put(other, 0, whole)
    window.barrier()
    found = window.mine[: world_size * n].clone()
    window.barrier()
    return found
