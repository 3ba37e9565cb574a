# caught by: memory
# All products: nothing runs again, and too much is kept

from torch.utils.checkpoint import CheckpointPolicy


def policy(ctx, op, *args, **kwargs):
    if op in (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
    ) or "scaled_dot_product" in str(op):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
