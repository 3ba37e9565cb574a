# caught by: stage1, stage2
# The slogan


def bytes_per_rank(num_parameters, ranks, stage):
    return 16 * num_parameters / (1, 4, 8, ranks)[stage]
