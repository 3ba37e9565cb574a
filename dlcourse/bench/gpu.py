"""What saves memory on a GPU, and what it costs in speed: GPT-2 Large, row by row.

Each row trains the same model, with float32, mixed precision, checkpoints, accumulation or
`torch.compile`, in the largest batch that fits, by doubling. Reported are tokens per second, MFU,
and the allocator's peak beside the ledger's. Without a CUDA device it measures and writes nothing.

    dlcourse bench gpu
    python -m dlcourse.bench.gpu --record data/gpu.json
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlcourse.plan.memory import GPT2_LARGE
from dlcourse.training.recipe import Recipe

TARGETS = {"mfu": 0.45, "ledger": 0.05}
# Dense bf16 FLOP/s, as NVIDIA's data sheets give them; the first that is in the device's name
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
# Products with 50,257 columns are slow on tensor cores: padded, as Megatron pads, to 128 x 393
SIZES = GPT2_LARGE | {"vocab_size": 50304}


@dataclass(frozen=True)
class Row:
    """How to train, and whether through ``torch.compile``."""

    recipe: Recipe
    compiled: bool = False


_EAGER = {
    "float32": Recipe(),
    "autocast": Recipe(precision="autocast"),
    "autocast, accumulate 4": Recipe(precision="autocast", accumulate=4),
    "autocast, checkpoint": Recipe(precision="autocast", checkpoint=True),
    "master weights": Recipe(precision="master"),
    "master weights, checkpoint": Recipe(precision="master", checkpoint=True),
}
ROWS = {name: Row(recipe) for name, recipe in _EAGER.items()} | {
    f"{name}, compiled": Row(recipe, compiled=True)
    for name, recipe in _EAGER.items()
    if recipe.accumulate == 1
}


def flops_per_token(sizes: dict[str, int], block: int) -> int:
    """Of forward and backward, for the MFU: recomputation is not counted, nor is causality used.

    Source: Chowdhery et al., "PaLM", 2022, appendix B: 6 for each weight of a matrix product, and
    12 T C for each layer's attention.
    """
    L, C, V = sizes["n_layer"], sizes["n_embd"], sizes["vocab_size"]
    return 6 * (12 * L * C * C + C * V) + 12 * L * block * C


def measure(
    row: Row,
    sizes: dict[str, int],
    *,
    device: str,
    batch: int,
    block: int,
    steps: int = 10,
    backend: str = "inductor",
) -> dict[str, Any]:
    """Train for some steps with batches of ``batch`` sequences.

    Args:
        sizes: of a ``GPTConfig``.
        backend: of ``torch.compile``, where the row is compiled.

    Returns:
        "tokens_per_s", "seconds" (median step), "loss"; "ledger_bytes": peak of the ledger, None
        for a compiled row, whose tensors are the compiler's; "cuda_bytes": the allocator's peak in
        the same step, None without CUDA.
    """
    import torch

    from dlcourse.measure.recorder import Recorder
    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.training.techniques import Training

    cuda = device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    training = Training(GPT(GPTConfig(**sizes)).to(device), row.recipe)
    if row.compiled:
        training.model = torch.compile(training.model, backend=backend)
    step = training.step
    tokens_BT = torch.randint(sizes["vocab_size"], (batch, block), device=device)
    targets_BT = tokens_BT.roll(-1, dims=1)
    for _ in range(3):  # state of the optimizer, choice of kernels, compilation
        step(tokens_BT, targets_BT)
    seconds = []
    for _ in range(steps):
        wait()
        start = time.perf_counter()
        loss = step(tokens_BT, targets_BT)
        wait()
        seconds.append(time.perf_counter() - start)
    middle = sorted(seconds)[len(seconds) // 2]
    ledger_bytes = None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if row.compiled:
        step(tokens_BT, targets_BT)
    else:
        with Recorder(0, 1) as recorder:
            step(tokens_BT, targets_BT)
        ledger_bytes = recorder.record["memory"]["peak_bytes"]
    wait()
    return {
        "batch": batch,
        "block": block,
        "seconds": middle,
        "tokens_per_s": batch * block / middle,
        "loss": loss.item(),
        "ledger_bytes": ledger_bytes,
        "cuda_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def largest(measure_with: Callable[[int], dict[str, Any]], *, first: int, most: int) -> dict | None:
    """What was measured with the largest batch that fits; None if not even ``first`` does."""
    import torch

    found, batch = None, first
    while batch <= most:
        try:
            found = measure_with(batch)
        except torch.OutOfMemoryError:
            return found
        finally:
            _clean()
        batch *= 2
    return found


def _clean() -> None:
    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def bench(*, block: int, most: int, steps: int) -> dict[str, Any]:
    """All rows on this machine's first CUDA device; prints them as they come."""
    import torch

    device = torch.cuda.get_device_name()
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    rows = {}
    for name, row in ROWS.items():

        def measure_with(batch: int, row: Row = row) -> dict[str, Any]:
            return measure(row, SIZES, device="cuda", batch=batch, block=block, steps=steps)

        found = largest(measure_with, first=row.recipe.accumulate, most=most)
        if found is None:
            print(f"gpu: {name}: does not fit", flush=True)
            continue
        found["mfu"] = peak and found["tokens_per_s"] * flops_per_token(SIZES, block) / peak
        rows[name] = found
        print(_line(name, found), flush=True)
    return {
        "sizes": SIZES,
        "machine": device,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "peak_flops": peak,
        "rows": rows,
    }


def _line(name: str, row: dict[str, Any]) -> str:
    mfu = "MFU unknown" if row["mfu"] is None else f"MFU {row['mfu']:.1%}"
    ledger = row["ledger_bytes"]
    beside = "" if ledger is None else f", ledger {ledger / row['cuda_bytes']:.3f} of it"
    return (
        f"gpu: {name}: batch {row['batch']} x {row['block']}, {row['tokens_per_s']:,.0f} tokens/s, "
        f"{mfu}, peak {row['cuda_bytes'] / 1e9:.2f} GB{beside}"
    )


def misses(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Which targets the rows miss, in words."""
    missed = [
        f"{name}: the ledger is {row['ledger_bytes'] / row['cuda_bytes']:.3f} of the peak"
        for name, row in rows.items()
        if row["ledger_bytes"] is not None
        and abs(row["ledger_bytes"] / row["cuda_bytes"] - 1) > TARGETS["ledger"]
    ]
    known = [row["mfu"] for row in rows.values() if row["mfu"] is not None]
    if known and max(known) < TARGETS["mfu"]:
        missed.append(f"best MFU {max(known):.1%}, target at least {TARGETS['mfu']:.0%}")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows; 0 where all targets are met, and where there is no CUDA device."""
    parser = argparse.ArgumentParser(prog="dlcourse bench gpu", description=__doc__)
    parser.add_argument("--block", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--most", type=int, default=64, help="largest batch to try")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("gpu: no CUDA device on this machine: nothing measured, nothing written")
        return 0
    found = bench(block=args.block, most=args.most, steps=args.steps)
    if args.record is not None:
        args.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    missed = misses(found["rows"])
    for line in missed:
        print(f"gpu: missed: {line}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
