# caught by: stage0, stage1, stage2, stage3
# Adam's two moments, without the master copy


def bytes_per_rank(num_parameters, ranks, stage):
    parameters = 2 / ranks if stage >= 3 else 2
    gradients = 2 / ranks if stage >= 2 else 2
    state = 8 / ranks if stage >= 1 else 8
    return num_parameters * (parameters + gradients + state)
