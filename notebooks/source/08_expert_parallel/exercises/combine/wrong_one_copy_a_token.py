# caught by: values, order, silent, dropped
# Writes where it must add: the last expert of a token wins


def combine_answers(arrivals, copies, send, weights):
    parts = dict(arrivals)
    rows = torch.cat([parts[r] for r in sorted(parts)])
    N, K = weights.shape
    result = rows.new_zeros(N, rows.size(1))
    result[copies // K] = rows * weights.flatten()[copies, None]
    return result
