# caught by: many, accumulated
# The loss forgotten


def peak(parameters, gradients, state, activations, micro_batches):
    return parameters + state + gradients
