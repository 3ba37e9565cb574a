# caught by: bits
# Right places, but the order of adding is that of arrival


def combine_answers(arrivals, copies, send, weights):
    N, K = weights.shape
    starts = [sum(send[:r]) for r in range(world_size)]
    total = None
    for r, part in arrivals:
        mine = copies[starts[r] : starts[r] + send[r]]
        if total is None:
            total = part.new_zeros(N, part.size(1))
        total.index_add_(0, mine // K, part * weights.flatten()[mine, None])
    return total
