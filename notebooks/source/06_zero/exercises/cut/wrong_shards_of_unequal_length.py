# caught by: uneven, tiny
# No padding: ranks have shards of different lengths


def cut(tensors):
    row = torch.cat([t.flatten() for t in tensors])
    return row.tensor_split(world_size)[rank].clone()


def join(shard, shapes):
    row = torch.empty(shard.numel() * world_size)
    dist.all_gather_single(row, shard)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    pieces = row[: sum(sizes)].split(sizes)
    return [piece.view(shape) for piece, shape in zip(pieces, shapes)]
