# caught by: own
from dlcourse.training.checkpointing.checkpoint import checkpoint


def run_again(function, x):
    return checkpoint(function, x)
