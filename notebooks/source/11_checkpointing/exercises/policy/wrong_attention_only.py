# caught by: flops
# Attention only

from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    if "scaled_dot_product" in str(op):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
