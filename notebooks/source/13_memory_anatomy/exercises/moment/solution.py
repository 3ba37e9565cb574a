def peak(parameters, gradients, state, activations, micro_batches):
    earlier = gradients if micro_batches > 1 else 0
    return parameters + state + max(activations + earlier, gradients)
