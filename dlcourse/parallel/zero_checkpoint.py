"""Checkpoints of a ZeRO model: every rank writes its shards; any number of ranks may read them.

    checkpoint/manifest.json     what the shards are parts of, and how large each file is
    checkpoint/rank0.pt ...      one file from each rank that saved

A shard means nothing without the layout of its flat tensor. With it, the shards of 4 ranks are put
side by side, their padding cut off, and the row is cut anew for 2 ranks, or 3. Stages 1, 2 and 3
have the same layout, so a checkpoint of one can be loaded by another.

A checkpoint can be checked before any rank starts, against the model that is to load it:

    with torch.device("meta"):          # shapes, and no memory
        check_checkpoint("checkpoint", layout_of(GPT(config)))
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dlcourse.parallel.zero import ZeRO1
    from dlcourse.parallel.zero_flat_parameters import FlatParameters

MANIFEST = "manifest.json"
Layout = list[dict[str, Any]]  # one entry a flat tensor


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


Shapes = dict[str, tuple[int, ...]]  # of the parameters in one flat tensor


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


def layout_of(model: ZeRO1 | nn.Module, units: Sequence[nn.Module] | None = None) -> Layout:
    """Names and shapes in each flat tensor of the model, in order. Plain data.

    Args:
        model: in a ZeRO class; or plain, for what a ZeRO class would make of it, without ranks.
        units: of a plain model, see ``split_into_units``.
    """
    from dlcourse.parallel.zero_flat_parameters import by_type, split_into_units

    if hasattr(model, "flats_of"):
        module, rows = model.module, [flat.parameters for flat in _flats(model)]
    else:
        groups = split_into_units(model, units).values()
        module, rows = model, [row for group in groups for row in by_type(group)]
    names = {p: name for name, p in module.named_parameters()}
    return [{"parameters": [[names[p], list(p.shape)] for p in row]} for row in rows]


def save_checkpoint(
    model: ZeRO1, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Save this rank's shards and their optimizer state, and buffers; all ranks must call it.

    The learning rate and its like are not saved: they are in your configuration. An older
    checkpoint in ``path`` is replaced once all ranks have written theirs.

    Raises:
        ValueError: the optimizer does not update this model's shards.
    """
    import torch
    import torch.distributed as dist

    _check_optimizer(model, optimizer)
    folder, rank = Path(path), dist.get_rank(model.process_group)
    folder.mkdir(parents=True, exist_ok=True)
    flats = [
        {"shard": flat.shard.detach().clone(), "state": dict(optimizer.state.get(flat.shard, {}))}
        for flat in _flats(model)
    ]
    file, part = folder / f"rank{rank}.pt", folder / f"rank{rank}.pt.part"
    torch.save({"flats": flats, "buffers": _buffers(model.module)}, part)
    size = torch.tensor(part.stat().st_size, device=model.shards[0].device)
    sizes = [torch.empty_like(size) for _ in range(model.world_size)]
    dist.all_gather(sizes, size, group=model.process_group)  # all have written
    if rank == 0:
        (folder / MANIFEST).unlink(missing_ok=True)  # from here on it is no longer the older one
    dist.barrier(model.process_group)
    part.replace(file)  # never written in place: somebody may have the older file mapped
    dist.barrier(model.process_group)
    if rank == 0:
        manifest = {
            "bytes": [int(s) for s in sizes],
            "layout": layout_of(model),
            "optimizer": type(optimizer).__name__,
        }
        part = folder / f"{MANIFEST}.part"
        part.write_text(json.dumps(manifest), encoding="utf-8")
        part.replace(folder / MANIFEST)
    dist.barrier(model.process_group)


def load_checkpoint(
    model: ZeRO1, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Load what any number of ranks have saved; all ranks must call it.

    The optimizer's state is then the checkpoint's, also where that has none: one that was saved
    before the first step. Buffers are those of rank 0.

    Raises:
        ValueError: as `check_checkpoint`; or another optimizer's state, or other buffers. In every
            rank, before anything is changed.
    """
    import torch

    _check_optimizer(model, optimizer)
    manifest = check_checkpoint(path, layout_of(model))
    files = [
        torch.load(Path(path, f"rank{rank}.pt"), mmap=True, map_location="cpu")
        for rank in range(len(manifest["bytes"]))
    ]
    flats = _flats(model)
    saved_flats = [[file["flats"][i] for file in files] for i in range(len(flats))]
    has_state = any(row["state"] for rows in saved_flats for row in rows)
    if has_state and manifest["optimizer"] != type(optimizer).__name__:
        raise ValueError(
            f"path={str(path)!r} has the state of {manifest['optimizer']}, and optimizer is "
            f"{type(optimizer).__name__}: give a {manifest['optimizer']} over model.shards"
        )
    buffers, saved_buffers = _buffers(model.module), files[0]["buffers"]
    for name in {**buffers, **saved_buffers}:
        mine, theirs = (of.get(name) for of in (buffers, saved_buffers))
        if mine is None or theirs is None or mine.shape != theirs.shape:
            raise ValueError(
                f"path={str(path)!r} is a checkpoint of another model: its buffers are "
                f"{_described(saved_buffers)}, this model's {_described(buffers)}; build the model "
                "from the same configuration"
            )
    pairs = list(zip(flats, saved_flats, strict=True))
    state = {flat.shard: _cut_state(saved, flat) for flat, saved in pairs}
    with torch.no_grad():
        for flat, saved in pairs:
            flat.shard.copy_(_cut_anew([row["shard"] for row in saved], flat))
        for name, buffer in buffers.items():
            buffer.copy_(saved_buffers[name])
    _replace_state(optimizer, state)
    for flat in flats:  # the frozen ones as well
        if flat.full.untyped_storage().nbytes():  # stage 3 gathers at the next forward
            flat.start_gather()
            flat.finish_gather()


def _check_optimizer(model: ZeRO1, optimizer: torch.optim.Optimizer) -> None:
    given = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if missing := sum(id(shard) not in given for shard in model.shards):
        raise ValueError(
            f"optimizer has {missing} of {len(model.shards)} tensors of model.shards not among its "
            "parameters, so their state would be lost: build it over model.shards"
        )


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a state_dict has besides parameters, such as BatchNorm's averages."""
    return {
        f"{prefix}.{name}": buffer
        for prefix, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    }


def _described(buffers: dict[str, Tensor]) -> str:
    shapes = (f"{name.lstrip('.')} {tuple(buffer.shape)}" for name, buffer in buffers.items())
    return ", ".join(shapes) or "none"


def _cut_state(saved: list[dict[str, Any]], flat: FlatParameters) -> dict[str, Any]:
    """An optimizer's state of this rank's shard, in memory of its own: files may be replaced."""
    import torch

    state = {}
    for key, value in saved[0]["state"].items():
        if isinstance(value, torch.Tensor) and value.shape == saved[0]["shard"].shape:
            value = _cut_anew([row["state"][key] for row in saved], flat)
        elif isinstance(value, torch.Tensor) and value.numel() == 1:
            value = value.clone()  # a step counter
        elif isinstance(value, torch.Tensor | list | tuple | dict):
            raise ValueError(
                f"the optimizer's {key} is neither one number nor one for each element of a shard, "
                "so it cannot be cut for other ranks: use an optimizer that goes element by element"
            )
        state[key] = value
    return state


def _replace_state(optimizer: torch.optim.Optimizer, state: dict[Tensor, dict[str, Any]]) -> None:
    """By the optimizer's own load_state_dict, which knows types and devices of its state."""
    numbered = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ids = [i for group in numbered["param_groups"] for i in group["params"]]
    for i, p in zip(ids, parameters, strict=True):
        if p in state:
            numbered["state"].pop(i, None)
            if state[p]:
                numbered["state"][i] = state[p]
    optimizer.load_state_dict(numbered)


def _cut_anew(shards: list[Tensor], flat: FlatParameters) -> Tensor:
    """This rank's part of what other ranks' shards were parts of. Shape: p x (m,) -> (n,)."""
    import torch

    row = torch.cat(shards)[: flat.numel]
    padding = flat.shard.numel() * flat.world_size - flat.numel
    return flat.mine(torch.nn.functional.pad(row, (0, padding))).clone()


def _flats(model: ZeRO1) -> list[FlatParameters]:
    return [flat for flats in model.flats_of.values() for flat in flats]
