# caught by: refused
# Only refuses zero


def micro_batches(batch, micro_batch, num_ranks):
    return batch // (micro_batch * num_ranks) or None
