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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlcourse.parallel.zero_checkpoint_checks import (
    MANIFEST,
    check_buffers,
    check_checkpoint,
    check_optimizer,
    check_state,
    flats_in,
    layout_of,
)

if TYPE_CHECKING:  # whoever only checks a checkpoint needs no torch
    import torch
    from torch import Tensor, nn

    from dlcourse.parallel.zero_flat_parameters import FlatParameters
    from dlcourse.parallel.zero_module import ShardedModule

__all__ = ["check_checkpoint", "layout_of", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(
    model: ShardedModule, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Save this rank's shards and their optimizer state, and buffers; all ranks must call it.

    The learning rate and its like are not saved: they are in your configuration. An older
    checkpoint in ``path`` is replaced once all ranks have written theirs.

    Raises:
        ValueError: the optimizer does not update this model's shards.
    """
    import torch
    import torch.distributed as dist

    check_optimizer(model, optimizer)
    folder, rank = Path(path), dist.get_rank(model.process_group)
    folder.mkdir(parents=True, exist_ok=True)
    flats = [
        {"shard": flat.shard.detach().clone(), "state": dict(optimizer.state.get(flat.shard, {}))}
        for flat in flats_in(model)
    ]
    file, part = folder / f"rank{rank}.pt", folder / f"rank{rank}.pt.part"
    torch.save({"flats": flats, "buffers": _buffers(model.module)}, part)
    size = torch.tensor(part.stat().st_size, device=model.flats[0].full.device)
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
    model: ShardedModule, optimizer: torch.optim.Optimizer, path: str | os.PathLike[str]
) -> None:
    """Load what any number of ranks have saved; all ranks must call it.

    The optimizer's state is then the checkpoint's, also where that has none: one that was saved
    before the first step. Buffers are those of rank 0.

    Raises:
        ValueError: as `check_checkpoint`; or another optimizer's state, or other buffers. In every
            rank, before anything is changed.
    """
    import torch

    check_optimizer(model, optimizer)
    manifest = check_checkpoint(path, layout_of(model))
    files = [
        torch.load(Path(path, f"rank{rank}.pt"), mmap=True, map_location="cpu")
        for rank in range(len(manifest["bytes"]))
    ]
    flats = flats_in(model)
    saved_rows = [[file["flats"][i] for file in files] for i in range(len(flats))]
    check_state(saved_rows, manifest["optimizer"], optimizer, path)
    buffers, saved_buffers = _buffers(model.module), files[0]["buffers"]
    check_buffers(buffers, saved_buffers, path)
    pairs = list(zip(flats, saved_rows, strict=True))
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


def _buffers(module: nn.Module) -> dict[str, Tensor]:
    """What a state_dict has besides parameters, such as BatchNorm's averages."""
    return {
        f"{prefix}.{name}": buffer
        for prefix, part in module.named_modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name not in part._non_persistent_buffers_set
    }


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


def _replace_state(
    optimizer: torch.optim.Optimizer, state: dict[nn.Parameter, dict[str, Any]]
) -> None:
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
