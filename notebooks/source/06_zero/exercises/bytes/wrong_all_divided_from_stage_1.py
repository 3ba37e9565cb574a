# caught by: stage1, stage2
# Everything divided from stage 1 on


def bytes_per_rank(num_parameters, ranks, stage):
    return 16 * num_parameters / (ranks if stage else 1)
