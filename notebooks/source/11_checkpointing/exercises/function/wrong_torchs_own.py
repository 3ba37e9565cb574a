# caught by: own
from torch.utils.checkpoint import checkpoint


def run_again(function, x):
    return checkpoint(function, x, use_reentrant=True)
