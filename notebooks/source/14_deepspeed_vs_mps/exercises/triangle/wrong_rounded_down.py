# caught by: refused
# As DeepSpeed divides, but without the check that follows


def micro_batches(batch, micro_batch, num_ranks):
    return batch // micro_batch // num_ranks
