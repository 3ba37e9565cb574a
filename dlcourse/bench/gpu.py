"""What saves memory on a GPU, and what it costs in speed: GPT-2 Large, row by row.

Each row trains the same model by one recipe, plainly or through `torch.compile`:

- with one batch for all, so that memory, time and FLOPs can be compared: claims D2 and D3, and the
  rows of D8 that one device can run (sharding needs several);
- with the largest batch that fits: tokens per second, MFU, and the allocator's peak beside the
  ledger's.

Without a CUDA device it measures and writes nothing.

    dlcourse bench gpu
    python -m dlcourse.bench.gpu --record data/gpu.json
    python -m dlcourse.bench.gpu --record data/gpu.json --rows compiled    # these only, added to it
"""

from __future__ import annotations

import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlcourse.bench._options import parser_of
from dlcourse.formulas.flops import flops_per_token
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig

TARGETS = {"mfu": 0.45, "ledger": 0.05}
# Dense bf16 FLOP/s, as NVIDIA's data sheets give them; the first that is in the device's name
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12}
PEAK_FLOPS |= {"H200 NVL": 835e12, "H200": 989e12, "A100": 312e12}
# Products with 50,257 columns are slow on tensor cores: padded, as Megatron pads, to 128 x 393
CONFIG = replace(GPT2_LARGE, vocab_size=50304)


@dataclass(frozen=True)
class Row:
    """How to train.

    Args:
        batch: sequences of a step; None for as many as fit.
        compiled: through ``torch.compile``, with the batch that fits without.
        beside: name of the row that this one is compared with.
    """

    recipe: Recipe
    batch: int | None = None
    compiled: bool = False
    beside: str | None = None


_D8 = ["mixed", "accumulate", "checkpoint"]
_EAGER = {
    "float32": Recipe(),
    "autocast": Recipe(precision="autocast"),
    "autocast, accumulate 4": Recipe(precision="autocast", accumulate=4),
    "autocast, checkpoint": Recipe(precision="autocast", checkpoint=True),
    "master weights": Recipe(precision="master"),
    "master weights, checkpoint": Recipe(precision="master", checkpoint=True),
}
_SAME = {
    "D2: float32": Row(Recipe(), 8),
    "D2: autocast": Row(Recipe(precision="autocast"), 8, beside="D2: float32"),
    "D2: master weights": Row(Recipe(precision="master"), 8, beside="D2: float32"),
    "D2: bfloat16": Row(Recipe(precision="bfloat16"), 8, beside="D2: float32"),
    "D3: checkpoint": Row(Recipe(checkpoint=True), 8, beside="D2: float32"),
    "D8: float32": Row(Recipe(), 2),
} | {
    f"D8: {' + '.join(_D8[:n])}": Row(
        Recipe.of(_D8[:n], **({"accumulate": 2} if n > 1 else {})), 2, beside="D8: float32"
    )
    for n in (1, 2, 3)
}
ROWS = _SAME | {name: Row(recipe) for name, recipe in _EAGER.items()}
ROWS |= {
    f"{name}, compiled": Row(recipe, compiled=True, beside=name)
    for name, recipe in _EAGER.items()
    if recipe.accumulate == 1
}


def measure(
    row: Row,
    config: GPTConfig,
    *,
    device: str,
    batch: int,
    block: int,
    steps: int = 10,
    warm_up: int = 3,
    backend: str = "inductor",
) -> dict[str, Any]:
    """Train for some steps with batches of ``batch`` sequences.

    Args:
        warm_up: steps before: state of the optimizer, choice of kernels, compilation.
        backend: of ``torch.compile``, where the row is compiled.

    Returns:
        "tokens_per_s", "seconds" (median step), "loss"; "ledger_bytes" and "flops": peak and sum
        of a recorded step, None for a compiled row, whose operators are the compiler's;
        "cuda_bytes": the allocator's peak in the same step, None without CUDA.
    """
    import torch

    from dlcourse.measure.recorder import Recorder
    from dlcourse.models.gpt import GPT
    from dlcourse.training.memory_anatomy import Training

    cuda = device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None
    training = Training(GPT(config).to(device), row.recipe)
    if row.compiled:
        compiled: Any = torch.compile(training.model, backend=backend)
        training.model = compiled
    step = training.step
    tokens_BT = torch.randint(config.vocab_size, (batch, block), device=device)
    targets_BT = tokens_BT.roll(-1, dims=1)
    for _ in range(warm_up):
        step(tokens_BT, targets_BT)
    seconds = []
    for _ in range(steps):
        wait()
        start = time.perf_counter()
        loss = step(tokens_BT, targets_BT)
        wait()
        seconds.append(time.perf_counter() - start)
    middle = sorted(seconds)[len(seconds) // 2]
    ledger_bytes = flops = None
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    if row.compiled:
        step(tokens_BT, targets_BT)
    else:
        with Recorder(0, 1) as recorder:
            step(tokens_BT, targets_BT)
        ledger_bytes, flops = recorder.record["memory"]["peak_bytes"], recorder.record["flops"]
    wait()
    return {
        "batch": batch,
        "block": block,
        "seconds": middle,
        "tokens_per_s": batch * block / middle,
        "loss": loss.item(),
        "ledger_bytes": ledger_bytes,
        "flops": flops,
        "cuda_bytes": torch.cuda.max_memory_allocated() if cuda else None,
    }


def largest(fits: Callable[[int], bool], *, first: int, most: int) -> int:
    """The largest batch that fits, to a sixteenth; a multiple of ``first``, 0 if that does not fit.

    Args:
        fits: tries a batch.
        first: the smallest, which is the number of micro-batches.
    """
    good, batch = 0, first
    while batch <= most and fits(batch):
        good, batch = batch, 2 * batch
    bad = batch
    while good and bad <= most and bad - good > max(first, good // 16):
        batch = (good + bad) // 2 // first * first
        good, bad = (batch, bad) if fits(batch) else (good, batch)
    return good


def _clean() -> None:
    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_row(row: Row, config: GPTConfig, batch: int, **job: Any) -> dict[str, Any] | None:
    """As ``measure``; None where the batch does not fit. Nothing of it is left on the device."""
    import torch

    try:
        return measure(row, config, batch=batch, **job)
    except torch.OutOfMemoryError:
        return None
    finally:
        _clean()


def bench(
    names: Sequence[str],
    rows: dict[str, dict[str, Any]],
    save: Callable[[], None],
    *,
    config: GPTConfig,
    most: int,
    steps: int,
    peak: float | None,
    **job: Any,
) -> None:
    """Measure rows one by one; print, add to ``rows`` and save each as it comes.

    Args:
        names: of ``ROWS``.
        peak: FLOP/s of the device, None if unknown.
        job: for ``measure``.
    """
    for name in names:
        row = ROWS[name]
        batch = row.batch
        if row.compiled and row.beside in rows:  # each other batch would be compiled, too
            batch = rows[row.beside]["batch"]
        if batch is None:

            def fits(batch: int, row: Row = row) -> bool:
                short = job | {"steps": 1, "warm_up": 1}
                return measure_row(row, config, batch, **short) is not None

            batch = largest(fits, first=row.recipe.accumulate, most=most)
        found = measure_row(row, config, batch, steps=steps, **job) if batch else None
        if found is None:
            print(f"gpu: {name}: does not fit", flush=True)
            continue
        found["mfu"] = (
            peak and found["tokens_per_s"] * flops_per_token(config, block=job["block"]) / peak
        )
        rows[name] = found
        print(_line(name, found, rows.get(row.beside or "")), flush=True)
        save()


def _line(name: str, row: dict[str, Any], other: dict[str, Any] | None) -> str:
    """A row in words, with its ratios to another one, where there is one."""
    mfu = "MFU unknown" if row["mfu"] is None else f"MFU {row['mfu']:.1%}"
    peak = row["cuda_bytes"] or row["ledger_bytes"]
    text = (
        f"gpu: {name}: batch {row['batch']} x {row['block']}, {row['tokens_per_s']:,.0f} tokens/s, "
        f"{mfu}"
    )
    if peak:  # not of a compiled row without CUDA
        text += f", peak {peak / 1e9:.2f} GB"
    if row["ledger_bytes"] and row["cuda_bytes"]:
        text += f", ledger {row['ledger_bytes'] / row['cuda_bytes']:.3f} of it"
    if other is not None and other["batch"] == row["batch"]:
        ratios = [("time", "seconds"), ("peak", "cuda_bytes"), ("ledger", "ledger_bytes")]
        told = [
            f"{word} {row[key] / other[key]:.3f}"
            for word, key in [*ratios, ("FLOPs", "flops")]
            if row[key] and other[key]
        ]
        text += f"; of {ROWS[name].beside}: {', '.join(told)}"
    return text


def misses(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Which targets the rows miss, in words."""
    missed = [
        f"{name}: the ledger is {row['ledger_bytes'] / row['cuda_bytes']:.3f} of the peak"
        for name, row in rows.items()
        if row["ledger_bytes"] is not None
        and abs(row["ledger_bytes"] / row["cuda_bytes"] - 1) > TARGETS["ledger"]
    ]
    known = [row["mfu"] for row in rows.values() if row["mfu"] is not None]
    if not known:
        missed.append("no MFU: nothing fits, or this device's FLOP/s are not in PEAK_FLOPS")
    elif max(known) < TARGETS["mfu"]:
        missed.append(f"best MFU {max(known):.1%}, target at least {TARGETS['mfu']:.0%}")
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    """Print the rows; 0 where all targets are met, and where there is no CUDA device."""
    parser = parser_of("gpu", __doc__)
    parser.add_argument("--block", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--most", type=int, default=1024, help="largest batch to try")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rows", default="", help="only rows with this in their names")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the rows as JSON")
    args = parser.parse_args(argv)
    import torch

    if not torch.cuda.is_available():
        print("gpu: no CUDA device on this machine: nothing measured, nothing written")
        return 0
    names = [name for name in ROWS if args.rows in name]
    if not names:
        parser.error(f"--rows {args.rows!r} is in no name: {', '.join(ROWS)}")
    device = torch.cuda.get_device_name()
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in device), None)
    job = {"config": CONFIG, "most": args.most, "steps": args.steps, "block": args.block}
    found = record(names, args.record, machine=device, peak=peak, device="cuda", **job)
    missed = misses(found)
    for line in missed:
        print(f"gpu: missed: {line}")
    return 1 if missed else 0


def record(
    names: Sequence[str], path: Path | None, *, machine: str, peak: float | None, **job: Any
) -> dict[str, dict[str, Any]]:
    """Measure rows; with a path, write them there after each, beside those that it has already.

    Raises:
        ValueError: the file has rows of another machine, model or version of torch.
    """
    import torch

    about = {
        "sizes": asdict(job["config"]),
        "machine": machine,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "peak_flops": peak,
    }
    before = json.loads(path.read_text(encoding="utf-8")) if path and path.exists() else {}
    for key, value in about.items():
        if before and before[key] != value:
            raise ValueError(
                f"{path}: its rows have {key}={before[key]!r}, this run has {value!r}: give "
                "another file"
            )
    rows = before.get("rows", {})

    def save() -> None:
        if path is not None:
            whole = about | {"date": datetime.now(UTC).date().isoformat(), "rows": rows}
            path.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")

    bench(names, rows, save, peak=peak, **job)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
