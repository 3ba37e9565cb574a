"""Buckets: many gradients in one buffer, because one large message costs less than many small."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dlcourse.collectives.buffers import views_like


class Bucket:
    """The gradients of some parameters side by side in one buffer.

    Attributes:
        buffer: the message, one dimension, in the parameters' dtype.
        views: for each parameter its part of ``buffer``, in the parameter's shape.
        users: the end of ``buffer`` where asked for: for each parameter, how many ranks used it.
        missing: parameters whose gradient backward has not finished yet.
        work: the all-reduce under way, or None.
        version: torch's count of changes to ``buffer`` when the all-reduce began.
    """

    def __init__(self, parameters: list[nn.Parameter], *, count_users: bool = False) -> None:
        self.parameters = parameters
        numel, first = sum(parameter.numel() for parameter in parameters), parameters[0]
        num_flags = len(parameters) if count_users else 0
        self.buffer = torch.zeros(numel + num_flags, dtype=first.dtype, device=first.device)
        self.views = views_like(self.buffer, parameters)
        self.users = self.buffer[numel:]
        self.missing = set(parameters)
        self.work: dist.Work | None = None
        self.version = 0

    def holds(self, view: Tensor, parameter: nn.Parameter) -> bool:
        """Whether ``view`` is memory of this bucket, and fits ``parameter`` as it is now."""
        shared = view.untyped_storage().data_ptr() == self.buffer.untyped_storage().data_ptr()
        same = (view.shape, view.dtype) == (parameter.shape, parameter.dtype)
        return shared and same

    def gradients_changed(self) -> bool:
        """Whether a gradient is no longer what was given to the all-reduce. None is no gradient."""
        pairs = zip(self.parameters, self.views, strict=True)
        replaced = any(p.grad is not None and p.grad is not view for p, view in pairs)
        return replaced or self.buffer._version != self.version


def make_buckets(
    parameters: Iterable[nn.Parameter],
    *,
    bucket_cap_mb: float,
    first_bucket_mb: float,
    count_users: bool = False,
) -> list[Bucket]:
    """Fill buckets in reverse order: backward finishes the last layer's gradients first.

    Args:
        parameters: in the order of the forward pass; frozen ones are left out.
        bucket_cap_mb: a bucket is closed as soon as it holds this many MiB.
        first_bucket_mb: the same for the first one: small, so that communication starts early.
        count_users: append one number for each parameter, see ``Bucket.users``.

    Returns:
        Buckets in the order in which backward fills them.
    """
    for name, cap_mb in (("bucket_cap_mb", bucket_cap_mb), ("first_bucket_mb", first_bucket_mb)):
        if not cap_mb >= 0:
            raise ValueError(
                f"{name}={cap_mb} is not allowed: give MiB, 0 or more (0: one parameter a bucket)"
            )
    order = {p: position for position, p in enumerate(reversed([*parameters])) if p.requires_grad}
    groups: list[list[nn.Parameter]] = []
    still_open: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in order:
        key = (parameter.dtype, parameter.device)  # one message holds one dtype
        if key not in still_open:
            groups.append([])
            still_open[key] = groups[-1]
        group = still_open[key]
        group.append(parameter)
        cap_mb = first_bucket_mb if group is groups[0] else bucket_cap_mb
        if sum(p.numel() * p.element_size() for p in group) >= cap_mb * 2**20:
            del still_open[key]
    groups.sort(key=lambda group: order[group[-1]])
    return [Bucket(group, count_users=count_users) for group in groups]


def check_in_buckets(module: nn.Module, buckets: list[Bucket]) -> None:
    """Raise a ``RuntimeError`` where a parameter that is trained would not be sent."""
    places = {
        parameter: (bucket, view)
        for bucket in buckets
        for parameter, view in zip(bucket.parameters, bucket.views, strict=True)
    }
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        bucket, view = places.get(parameter, (None, None))
        # A change of dtype or device, as by module.half(), gives gradients, too, other memory
        if bucket is None or view is None or not bucket.holds(view, parameter):
            raise RuntimeError(
                f"parameter {name} was added, unfrozen or given another shape, dtype or device "
                "after the module was wrapped, so it is in no bucket: wrap the module again"
            )
