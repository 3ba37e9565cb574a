"""What a backend carries, found by trying: every call is made, and its result looked at.

    found = try_dtypes(dist.all_reduce)      # {"float32": "right", "bool": "wrong", ...}

An answer is "right", "wrong" (it came back without an error, and is not the sum), or the first line
of the error. A backend that refuses tells you; one that answers wrongly does not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from dlcourse.collectives.compat import reduce_scatter_single

DTYPES: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn")
DTYPES += ("int64", "int16", "complex64", "bool")


def attempt(call: Callable[[], bool]) -> str:
    """The outcome of a call that returns whether its result was right."""
    try:
        return "right" if call() else "wrong"
    except Exception as error:  # whatever a library raises is an answer here
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def try_dtypes(
    all_reduce: Callable[[torch.Tensor], Any], device: torch.device | str = "cpu"
) -> dict[str, str]:
    """Sum (rank + 1) over all ranks in each dtype. Call it in every rank."""
    size, mine = dist.get_world_size(), dist.get_rank() + 1

    def of(dtype: torch.dtype) -> bool:
        x = torch.full((4,), mine).to(device, dtype)
        all_reduce(x)
        total = size * (size + 1) // 2
        return bool((x.to(torch.complex64) == total).all())

    return {name: attempt(partial(of, getattr(torch, name))) for name in DTYPES}


def try_calls(device: torch.device | str = "cpu") -> dict[str, str]:
    """Calls that not every backend of torch has. Call it in every rank."""
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = torch.full((size,), float(rank), device=device)
    others = torch.arange(float(size), device=device)

    def average() -> bool:
        x = mine.clone()
        dist.all_reduce(x, op=dist.ReduceOp.AVG)
        return bool((x == (size - 1) / 2).all())

    def single() -> bool:
        swapped = torch.empty_like(mine)
        dist.all_to_all_single(swapped, mine)
        return torch.equal(swapped, others)

    def lists() -> bool:
        swapped = [torch.empty_like(mine[:1]) for _ in range(size)]
        dist.all_to_all(swapped, list(mine.clone().split(1)))
        return torch.equal(torch.cat(swapped), others)

    def scatter() -> bool:
        part = torch.empty_like(mine[:1])
        reduce_scatter_single(part, mine.clone())
        return part.item() == size * (size - 1) / 2

    calls = {"ReduceOp.AVG": average, "all_to_all_single": single, "all_to_all": lists}
    calls["reduce_scatter_tensor"] = scatter
    return {name: attempt(call) for name, call in calls.items()}


def available() -> dict[str, bool]:
    """Which backends this torch was built with, by its own ``dist.is_*_available()``."""
    names = ("gloo", "nccl", "mpi", "ucc", "xccl")
    return {name: getattr(dist, f"is_{name}_available", lambda: False)() for name in names}
