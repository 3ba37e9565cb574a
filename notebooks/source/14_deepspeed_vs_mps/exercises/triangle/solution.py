def micro_batches(batch, micro_batch, num_ranks):
    each = micro_batch * num_ranks
    return None if batch % each or batch < each else batch // each
