# caught by: refused
# Refuses nothing: the last micro-batch would be smaller


def micro_batches(batch, micro_batch, num_ranks):
    return max(1, -(-batch // (micro_batch * num_ranks)))
