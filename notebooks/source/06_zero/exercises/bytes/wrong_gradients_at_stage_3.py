# caught by: stage2


def bytes_per_rank(num_parameters, ranks, stage):
    parameters = 2 / ranks if stage >= 3 else 2
    gradients = 2 / ranks if stage >= 3 else 2
    state = 12 / ranks if stage >= 1 else 12
    return num_parameters * (parameters + gradients + state)
