"""Measures this machine for the planner, and keeps it as a profile.

    profile = calibrate(ranks=4)          # seconds on a CPU or on its GPUs
    store(profile, "profile.json")
    cluster = read_profile("profile.json", gpus=4)     # times its products by what was measured

Every rank measures at the same time, as ranks train at the same time: products by size, fused
attention, memory, the start of an operator; and together collectives, by the course's own
benchmark (``dlcourse.collectives.benchmark``). What one machine cannot show, a network between
nodes, is taken from ``gpus.json`` and named in the profile's "assumed".
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from dlcourse.formulas.flops import attention_flops
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.plan.cluster import Cluster, cluster_of
from dlcourse.ranks.notebook.pool import Ranks
from dlcourse.words.refusal import Refusal

# Sides of square products; and bytes of a small and a large collective
SIDES = {"cpu": (64, 128, 256, 512, 1024), "cuda": (256, 512, 1024, 2048, 4096, 8192)}
COLLECTIVE_BYTES = (4096, 1 << 24)
_SECONDS = 0.15  # of each measurement, at least three repetitions


def calibrate(*, ranks: int) -> dict[str, Any]:
    """A profile of this machine: "constants" of a ``Cluster``, "efficiency" by side, "assumed".

    Raises:
        ValueError: fewer than one rank.
    """
    if ranks < 1:
        raise Refusal("refusal.whole", name="ranks", value=repr(ranks), least=1)
    with Ranks(ranks) as pool:
        found = pool.run(measure_rank)
    slowest = {  # what one waits for
        name: max(row[name] for row in found)
        if name.endswith("seconds")
        else min(row[name] for row in found)
        for name in found[0]
        if isinstance(found[0][name], float)
    }
    products = {side: min(row["products"][side] for row in found) for side in found[0]["products"]}
    best = max(products.values())
    usual = cluster_of("h100", gpus=ranks)
    constants = {name: getattr(usual, name) for name in _constants()}
    measured = {
        "gpu": found[0]["device"],
        "gpus": ranks,
        "node": ranks,
        "memory": slowest["memory"],
        "peak": best,
        "best_matrix": best,
        "sustained_matrix": products[max(products)],
        "multiprocessors": found[0]["multiprocessors"],
        "bandwidth": slowest["bandwidth"],
        "memory_efficiency": 1.0,
        "copy_efficiency": 1.0,
        "flash_forward": slowest["attention"],
        "flash_backward": slowest["attention_backward"],
        "flash3_forward": slowest["attention"],
        "flash3_backward": slowest["attention_backward"],
        "kernel_seconds": slowest["operator_seconds"],
        "host_seconds": slowest["operator_seconds"],
        "host_memory": slowest["host_memory"],
    }
    if ranks > 1:
        measured |= {"node_bandwidth": slowest["links"], "node_efficiency": 1.0}
        measured |= {"ring_seconds": slowest["collective_seconds"], "node_hop_seconds": 1e-9}
        measured |= {"all_to_all_efficiency": 1.0}
    return {
        "about": "Measured by dlcourse plan --calibrate",
        "date": time.strftime("%Y-%m-%d"),
        "device": found[0]["device"],
        "ranks": ranks,
        "efficiency": {str(side): rate / best for side, rate in products.items()},
        "constants": constants | measured,
        "assumed": sorted(set(constants) - set(measured)),
    }


def store(profile: dict[str, Any], path: str | Path) -> Path:
    """Write a profile as JSON."""
    file = Path(path)
    file.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")
    return file


def read_profile(path: str | Path, *, gpus: int | None = None, **given: Any) -> Cluster:
    """The cluster of a stored profile, with as many of its devices as asked for.

    Raises:
        ValueError: no file, no JSON (with line and column), or no profile.
    """
    file = Path(path)
    try:
        profile = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(
            "refusal.file.unreadable", name="profile", path=repr(str(path)), why=error
        ) from None
    except json.JSONDecodeError as error:
        where = {"line": error.lineno, "column": error.colno, "why": error.msg}
        raise Refusal("refusal.file.json", path=file, **where) from None
    constants = profile.get("constants") if isinstance(profile, dict) else None
    if not isinstance(constants, dict) or set(constants) != _constants():
        raise Refusal("refusal.profile", path=file)
    for name, value in constants.items():
        whole = name in ("gpus", "node", "host_gpus", "multiprocessors")
        number = type(value) is int or (type(value) is float and not whole)
        if name != "gpu" and not (number and abs(value) < inf):
            key = "refusal.profile.whole" if whole else "refusal.profile.number"
            raise Refusal(key, path=file, name=name, value=repr(value))
    if gpus is not None:
        constants["gpus"] = gpus
        constants["node"] = min(gpus, constants["node"]) if gpus > 0 else constants["node"]
    return Cluster(**constants | {"efficiency": _curve(file, profile.get("efficiency"))} | given)


def _constants() -> set[str]:
    """Names of a profile's constants: of a ``Cluster`` but for what was measured by size."""
    return {field.name for field in fields(Cluster)} - {"efficiency"}


def _curve(file: Path, found: Any) -> tuple[tuple[int, float], ...]:
    """(side, share of the best product), by side; none where a profile has none."""
    curve = found if found is not None else {}
    try:
        return tuple(sorted((int(side), float(share)) for side, share in curve.items()))
    except (AttributeError, TypeError, ValueError):
        raise Refusal("refusal.profile.curve", path=file, value=repr(found)) from None


def measure_rank() -> dict[str, Any]:
    """Runs in every rank: rates of this one, FLOP/s and bytes/s, and seconds."""
    import torch
    import torch.distributed as dist

    from dlcourse.collectives.benchmark import measure
    from dlcourse.machine import memory_bytes

    cuda = dist.is_initialized() and dist.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    world = dist.get_world_size() if dist.is_initialized() else 1

    def timed(call: Callable[[], object]) -> float:
        return _timed(call, torch.cuda.synchronize if cuda else None)

    products = {}
    for side in SIDES[device.type]:
        a, b = torch.randn(2, side, side, device=device, dtype=dtype)
        products[side] = 2 * side**3 / timed(partial(torch.matmul, a, b))
    numbers = 1 << (28 if cuda else 22)
    x = torch.zeros(numbers, device=device)
    small = torch.zeros(1, device=device)
    rows = 4096 if cuda else 256
    query = torch.randn(1, 8, rows, 64, device=device, dtype=dtype, requires_grad=True)
    attention = torch.nn.functional.scaled_dot_product_attention
    forward = timed(lambda: attention(query, query, query, is_causal=True))
    both = timed(lambda: attention(query, query, query, is_causal=True).sum().backward())
    half = attention_flops(query.shape, query.shape, query.shape) / 2  # less the masked half
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else "cpu",
        "multiprocessors": (
            torch.cuda.get_device_properties(device).multi_processor_count if cuda else 1
        ),
        "memory": float(torch.cuda.mem_get_info(device)[1]) if cuda else memory_bytes() / world,
        "host_memory": float(memory_bytes()),
        "products": products,
        "bandwidth": 3 * 4 * numbers / timed(lambda: torch.add(x, x)),
        "operator_seconds": timed(lambda: small + 1),
        "attention": half / forward,
        "attention_backward": 2.5 * half / max(both - forward, 0.1 * both),
    }
    if world > 1:
        short, long = measure(["torch_all_gather"], COLLECTIVE_BYTES, repeats=5, device=device)
        sent = wire_bytes("all_gather", long["bytes"] - short["bytes"], world)
        found["links"] = sent / max(long["seconds"] - short["seconds"], 1e-9)
        found["collective_seconds"] = short["seconds"]
    return found


def _timed(call: Callable[[], object], synchronize: Callable[[], None] | None) -> float:
    """Median seconds of a call, over ``_SECONDS`` or three of them."""
    samples: list[float] = []
    call()
    started = time.perf_counter()
    while len(samples) < 3 or time.perf_counter() - started < _SECONDS:
        if synchronize:
            synchronize()
        start = time.perf_counter()
        call()
        if synchronize:
            synchronize()
        samples.append(time.perf_counter() - start)
    return median(samples)
