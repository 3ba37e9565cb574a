# caught by: many, few
# All four added up, though activations and gradients peak at different moments


def peak(parameters, gradients, state, activations, micro_batches):
    return parameters + gradients + state + activations
