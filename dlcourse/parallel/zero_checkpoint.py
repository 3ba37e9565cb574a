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

    from dlcourse.parallel.flat import FlatParameters
    from dlcourse.parallel.zero import ZeRO1

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
    from dlcourse.parallel.flat import alike, split_into_units

    if hasattr(model, "flats_of"):
        module, rows = model.module, [flat.parameters for flat in _flats(model)]
    else:
        groups = split_into_units(model, units).values()
        module, rows = model, [row for group in groups for row in alike(group)]
    names = {p: name for name, p in module.named_parameters()}
    return [{"parameters": [[names[p], list(p.shape)] for p in row]} for row in rows]


def save_checkpoint(
    model: ZeRO1, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Save this rank's shards and their optimizer state; all ranks must call it.

    The learning rate and its like are not saved: they are in your configuration.
    """
    import torch
    import torch.distributed as dist

    folder, rank = Path(path), dist.get_rank(model.process_group)
    folder.mkdir(parents=True, exist_ok=True)
    if rank == 0:
        (folder / MANIFEST).unlink(missing_ok=True)  # the folder may hold an older checkpoint
    dist.barrier(model.process_group)
    rows = [
        {"shard": flat.shard.detach().clone(), "state": dict(optimizer.state.get(flat.shard, {}))}
        for flat in _flats(model)
    ]
    file = folder / f"rank{rank}.pt"
    torch.save(rows, file)
    size = torch.tensor(file.stat().st_size, device=model.shards[0].device)
    sizes = [torch.empty_like(size) for _ in range(model.world_size)]
    dist.all_gather(sizes, size, group=model.process_group)
    if rank == 0:
        text = json.dumps({"bytes": [int(s) for s in sizes], "layout": layout_of(model)})
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    dist.barrier(model.process_group)


def load_checkpoint(
    model: ZeRO1, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Load what any number of ranks have saved; all ranks must call it.

    Raises:
        ValueError: as `check_checkpoint`, in every rank, before anything is changed.
    """
    import torch

    manifest = check_checkpoint(path, layout_of(model))
    files = [
        torch.load(Path(path, f"rank{rank}.pt"), mmap=True, map_location="cpu")
        for rank in range(len(manifest["bytes"]))
    ]
    for i, flat in enumerate(_flats(model)):
        saved = [rows[i] for rows in files]
        with torch.no_grad():
            flat.shard.copy_(_cut_anew([row["shard"] for row in saved], flat))
        state = {}
        for key, value in saved[0]["state"].items():
            whole = isinstance(value, torch.Tensor) and value.shape == saved[0]["shard"].shape
            pieces = [row["state"][key] for row in saved]
            state[key] = _cut_anew(pieces, flat).to(flat.shard.device) if whole else value
        if state:
            optimizer.state[flat.shard] = state
    for flat in _flats(model):  # the frozen ones as well
        if flat.full.untyped_storage().nbytes():  # stage 3 gathers at the next forward
            flat.start_gather()
            flat.finish_gather()


def _cut_anew(shards: list[Tensor], flat: FlatParameters) -> Tensor:
    """This rank's part of what other ranks' shards were parts of. Shape: p x (m,) -> (n,)."""
    import torch

    row = torch.cat(shards)[: flat.numel]
    padding = flat.shard.numel() * flat.world_size - flat.numel
    return flat.mine(torch.nn.functional.pad(row, (0, padding))).clone()


def _flats(model: ZeRO1) -> list[FlatParameters]:
    return [flat for flats in model.flats_of.values() for flat in flats]
