"""The course's collectives over torch's own on the same group, taken in turns.

Each ratio is the median over turns of (ours / torch's) in the same turn, so that a slow moment of
the machine hits both. Only the ratios mean something elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import quantiles
from typing import Any

from dlcourse import Ranks
from dlcourse.bench._options import parser_of
from dlcourse.words.text_table import text_table

# (label, ours: the best of these counts, torch's, at most)
TARGETS: list[tuple[str, tuple[str, ...], str, float]] = [
    ("ring all-reduce", ("ring_all_reduce",), "torch_all_reduce", 1.10),
    (
        "best all-reduce",
        ("ring_all_reduce", "direct_all_reduce", "shared_all_reduce"),
        "torch_all_reduce",
        0.95,
    ),
    (
        "reduce-scatter",
        ("direct_reduce_scatter", "ring_reduce_scatter"),
        "torch_reduce_scatter",
        0.60,
    ),
]
HEADER = ("algorithm", "bytes", "ms", "25%", "75%", "busbw GB/s", "wire / n", "theory")


def measure(names: Sequence[str], sizes: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Runs in every rank."""
    import torch

    from dlcourse.collectives.benchmark import measure

    device = torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    return measure(names, sizes, repeats=repeats, device=device)


def ratio(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, float, float]:
    """Quartiles of ours / theirs over the turns: (25%, median, 75%)."""
    turns = [a / b for a, b in zip(ours["samples"], theirs["samples"], strict=True)]
    low, middle, high = quantiles(turns, n=4)
    return low, middle, high


def cells(row: Mapping[str, Any]) -> list[str]:
    """One row of the table."""
    times = [f"{1e3 * row[name]:.3f}" for name in ("seconds", "low", "high")]
    wire = "" if row["wire"] is None else f"{row['wire'] / row['bytes']:.3f}"
    theory = f"{row['wire_theory'] / row['bytes']:.3f}"
    return [
        row["algorithm"], str(row["bytes"]), *times, f"{row['busbw'] / 1e9:.3f}", wire, theory
    ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print times, bytes and ratios; 0 where every target is met, 1 where not."""
    parser = parser_of("collectives", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=40, help="turns of each algorithm")
    parser.add_argument("--bytes", type=int, default=16 << 20, help="size for the targets")
    parser.add_argument("--all", action="store_true", help="every algorithm, at four sizes")
    args = parser.parse_args(argv)
    if args.repeats < 2 or args.ranks < 2:
        parser.error("give at least 2 ranks and 2 repeats")
    names = sorted({name for _, ours, theirs, _ in TARGETS for name in (*ours, theirs)})
    with Ranks(args.ranks) as ranks:
        rows = ranks.run(measure, names, [args.bytes], args.repeats)[0]
        others = []
        if args.all:
            from dlcourse.collectives.benchmark import CALLS

            others = ranks.run(measure, sorted(CALLS), [4, 65_536, 1 << 20, args.bytes], 5)[0]
    print(f"{args.ranks} ranks, {args.repeats} turns")
    print(text_table(HEADER, map(cells, rows + others)))
    by_name = {row["algorithm"]: row for row in rows}
    missed = 0
    for label, ours, theirs, limit in TARGETS:
        found = {name: ratio(by_name[name], by_name[theirs]) for name in ours}
        for name, (low, middle, high) in found.items():
            print(
                f"{name}: {middle:.3f} times {theirs} (half of the turns {low:.3f} to {high:.3f})"
            )
        best = min(middle for _, middle, _ in found.values())
        missed += best > limit
        print(f"{label}: {best:.3f}, target at most {limit}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
