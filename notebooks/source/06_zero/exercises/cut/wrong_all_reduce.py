# caught by: bytes
# All-reduce of zeros with my part: twice the bytes


def cut(tensors):
    row = torch.cat([tensor.flatten() for tensor in tensors])
    n = -(-row.numel() // world_size)
    row = F.pad(row, (0, n * world_size - row.numel()))
    return row[rank * n : (rank + 1) * n].clone()


def join(shard, shapes):
    n = shard.numel()
    row = torch.zeros(n * world_size)
    row[rank * n : (rank + 1) * n] = shard
    dist.all_reduce(row)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = row[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]
