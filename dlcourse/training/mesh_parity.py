"""How far the layers of one rank of a mesh are from those of one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh


def apart_from(
    layers: nn.Module, whole: nn.Module, mesh: DeviceMesh, of: Callable[[Tensor], Tensor | None]
) -> float:
    """Largest difference over all ranks: this rank's parts against the same parts of ``whole``.

    Args:
        layers: this rank's stage, from ``PipelineParallel``, its matrices cut along "tensor".
        whole: the model of one process.
        of: what to compare of a parameter: ``lambda p: p.grad``, or the parameter itself.

    Raises:
        ValueError: a parameter of ``layers`` that ``whole`` has not.
    """
    known = dict(whole.named_parameters())
    worst: list[Tensor] = []
    for name, mine in layers.named_parameters():
        full, got = of(known[_name_in(known, name)]), of(mine)
        if full is None or got is None:
            if full is not got:
                raise ValueError(f"{name}: one has a value and the other has none")
            continue
        for dim in range(full.dim()):
            if got.shape[dim] != full.shape[dim]:
                full = full.chunk(mesh["tensor"].size(), dim)[mesh.get_local_rank("tensor")]
        worst.append((got - full).abs().max())
    return largest(torch.stack(worst).max() if worst else 0.0)


def largest(number: float | Tensor) -> float:
    """The largest of all ranks' numbers, in every rank; infinity where one has NaN."""
    found = torch.as_tensor(number, dtype=torch.float64).detach().clone()
    found.nan_to_num_(torch.inf, posinf=torch.inf)  # MAX may pass over NaN
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.item()


def _name_in(known: Mapping[str, Tensor], name: str) -> str:
    """The model's name of a stage's parameter: "stages.0.blocks.1.up.weight" without its stage."""
    for start in range(len(name)):
        if (start == 0 or name[start - 1] == ".") and name[start:] in known:
            return name[start:]
    raise ValueError(f"{name}: the model of one process has no such parameter")
