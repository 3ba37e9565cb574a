# caught by: own
from dlcourse.parallel.tensor_vocabulary import parallel_cross_entropy


def vocab_loss(logits, targets, vocab_size):
    logits.requires_grad_()
    loss = parallel_cross_entropy(logits, targets, vocab_size=vocab_size)
    loss.backward()
    return loss.detach(), logits.grad
