def cut(tensors):
    row = torch.cat([tensor.flatten() for tensor in tensors])
    n = -(-row.numel() // world_size)
    row = F.pad(row, (0, n * world_size - row.numel()))
    return row[rank * n : (rank + 1) * n].clone()


def join(shard, shapes):
    row = torch.empty(shard.numel() * world_size)
    dist.all_gather_single(row, shard)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = row[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]
