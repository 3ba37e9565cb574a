# caught by: values
# Moves the blocks, and forgets to transpose inside them.


def transpose(rows):
    own = len(rows)
    leaving = rows.view(own, world_size, own).transpose(0, 1).contiguous()
    arriving = torch.empty_like(leaving)
    dist.all_to_all_single(arriving, leaving)
    return arriving.transpose(0, 1).reshape(own, -1)
