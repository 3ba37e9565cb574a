# caught by: accumulated
# With accumulation the gradients of earlier micro-batches are there at the loss


def peak(parameters, gradients, state, activations, micro_batches):
    return parameters + state + max(activations, gradients)
