# caught by: silent
# Gives every rank a part of the same number of messages


def combine_answers(arrivals, copies, send, weights):
    parts = dict(arrivals)
    rows = [parts.get(r) for r in range(world_size)]
    if any(part is None for part in rows):
        return torch.zeros(len(weights), 16)
    rows = torch.cat(rows)
    N, K = weights.shape
    weighted = rows * weights.flatten()[copies, None]
    return rows.new_zeros(N, rows.size(1)).index_add(0, copies // K, weighted)
