# caught by: ranks, refused
# Forgets that the batch is of all ranks


def micro_batches(batch, micro_batch, num_ranks):
    return None if batch % micro_batch else batch // micro_batch
