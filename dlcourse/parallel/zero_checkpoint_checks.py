"""The layout of a ZeRO checkpoint, and what it must be like: every refusal is a ValueError.

All of it comes before anything is changed, and in every rank.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # whoever only checks a checkpoint needs no torch
    import torch
    from torch import Tensor, nn

    from dlcourse.parallel.zero_flat_parameters import FlatParameters
    from dlcourse.parallel.zero_module import ShardedModule

MANIFEST = "manifest.json"
Layout = list[dict[str, Any]]  # one entry a flat tensor
Shapes = dict[str, tuple[int, ...]]  # of the parameters in one flat tensor


def layout_of(model: nn.Module, units: Sequence[nn.Module] | None = None) -> Layout:
    """Names and shapes in each flat tensor of the model, in order. Plain data.

    Args:
        model: in a ZeRO class; or plain, for what a ZeRO class would make of it, without ranks.
        units: of a plain model, see ``split_into_units``.
    """
    from dlcourse.parallel.zero_flat_parameters import by_type, split_into_units
    from dlcourse.parallel.zero_module import ShardedModule

    if isinstance(model, ShardedModule):
        module, rows = model.module, [flat.parameters for flat in flats_in(model)]
    else:
        groups = split_into_units(model, units).values()
        module, rows = model, [row for group in groups for row in by_type(group)]
    names = {p: name for name, p in module.named_parameters()}
    return [{"parameters": [[names[p], list(p.shape)] for p in row]} for row in rows]


def flats_in(model: ShardedModule) -> list[FlatParameters]:
    """All flat parameters of the model, frozen ones as well, in one order."""
    return [flat for flats in model.flats_of.values() for flat in flats]


def check_checkpoint(path: str | os.PathLike[str], layout: Layout | None = None) -> dict[str, Any]:
    """The manifest of a complete checkpoint, which fits ``layout`` if one is given.

    Raises:
        ValueError: it is missing, truncated, or of another model; names what is there and what
            should be.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = [int(size) for size in manifest["bytes"]]
        saved = [_shapes(flat) for flat in manifest["layout"]]
        manifest["optimizer"] = str(manifest["optimizer"])
        if not sizes:
            raise ValueError("no rank has saved anything")
    except FileNotFoundError:
        raise ValueError(
            f"path={str(path)!r} has no {MANIFEST}, which is written last: it is no checkpoint, or "
            "saving was interrupted; give an older one"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{MANIFEST} in path={str(path)!r} cannot be read: give another checkpoint"
        ) from None
    for rank, size in enumerate(sizes):
        file = folder / f"rank{rank}.pt"
        found = file.stat().st_size if file.is_file() else 0
        if found != size:
            raise ValueError(
                f"{file.name} in path={str(path)!r} has {found} bytes and should have {size}: the "
                "checkpoint is truncated; copy it again, or give an older one"
            )
    if layout is not None:
        _compare(saved, [_shapes(flat) for flat in layout], path)
    return manifest


def _shapes(flat: dict[str, Any]) -> Shapes:
    return {name: tuple(shape) for name, shape in flat["parameters"]}


def _compare(saved: list[Shapes], layout: list[Shapes], path: str | os.PathLike[str]) -> None:
    mine, theirs = (
        {name: shape for flat in rows for name, shape in flat.items()} for rows in (layout, saved)
    )
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise ValueError(
                f"path={str(path)!r} is a checkpoint of another model: there {name} has shape "
                f"{theirs.get(name, 'none')}, in this model {mine.get(name, 'none')}; build the "
                "model from the same configuration"
            )
    if [[*flat] for flat in saved] != [[*flat] for flat in layout]:
        raise ValueError(
            f"path={str(path)!r} has its parameters in {len(saved)} flat tensors, this model "
            f"in {len(layout)} other ones: freeze the same parameters and give the same units"
        )


def check_optimizer(model: ShardedModule, optimizer: torch.optim.Optimizer) -> None:
    """An optimizer must update all of this model's shards, and all ranks have the same shards."""
    if any(flat.process_group is not model.process_group for flat in flats_in(model)):
        raise ValueError(
            f"model is a {type(model).__name__} with experts divided over ranks, whose files would "
            "be put side by side as if they were of the same experts: save model.state_dict() and "
            "optimizer.state_dict() of each rank"
        )
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := sum(id(flat.shard) not in given for flat in model.flats):
        raise ValueError(
            f"optimizer has {missing} of {len(model.flats)} tensors of model.shards not among its "
            "parameters, so their state would be lost: build it over model.shards"
        )


def check_state(
    saved_rows: list[list[dict[str, Any]]],
    saved_by: str,
    optimizer: torch.optim.Optimizer,
    path: str | os.PathLike[str],
) -> None:
    """A state must be that of the same kind of optimizer."""
    has_state = any(row["state"] for rows in saved_rows for row in rows)
    if has_state and saved_by != type(optimizer).__name__:
        raise ValueError(
            f"path={str(path)!r} has the state of {saved_by}, and optimizer is "
            f"{type(optimizer).__name__}: give a {saved_by} over model.shards"
        )


def check_buffers(
    buffers: dict[str, Tensor], saved: dict[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """A checkpoint must have the module's buffers, in their shapes."""
    for name in {**buffers, **saved}:
        mine, theirs = (of.get(name) for of in (buffers, saved))
        if mine is None or theirs is None or mine.shape != theirs.shape:
            raise ValueError(
                f"path={str(path)!r} is a checkpoint of another model: its buffers are "
                f"{_described(saved)}, this model's {_described(buffers)}; build the model "
                "from the same configuration"
            )


def _described(buffers: dict[str, Tensor]) -> str:
    shapes = (f"{name.lstrip('.')} {tuple(buffer.shape)}" for name, buffer in buffers.items())
    return ", ".join(shapes) or "none"
