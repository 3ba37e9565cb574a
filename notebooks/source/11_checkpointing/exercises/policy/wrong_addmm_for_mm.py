# caught by: memory
# The wide products kept, the narrow ones run again

from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    if op == torch.ops.aten.addmm.default or "scaled_dot_product" in str(op):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
