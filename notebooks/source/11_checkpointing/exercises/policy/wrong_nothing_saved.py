# caught by: flops
# Nothing: plain checkpointing

from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    if op == torch.ops.aten.mm.default or "scaled_dot_product" in str(op):
        return CheckpointPolicy.PREFER_RECOMPUTE
    return CheckpointPolicy.PREFER_RECOMPUTE
