# caught by: few, accumulated
# The optimizer's step forgotten


def peak(parameters, gradients, state, activations, micro_batches):
    return parameters + state + activations
