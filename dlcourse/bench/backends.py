"""Gloo, MPI and shared memory on this machine: five collectives, five sizes, alpha and beta.

    dlcourse bench backends
    python -m dlcourse.bench.backends --collectives all_reduce all_to_all --ranks 4
    python -m dlcourse.bench.backends --record data/backends.json    # what lesson 02 falls back on

Gloo's ranks and MPI's are other processes, so they take turns: some calls here, some there, and
again. What is kept of each is its *fastest* call: other programs only ever make one slower.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dlcourse import Ranks, machine
from dlcourse.bench._options import parser_of
from dlcourse.figures.backends import figures_of_c7
from dlcourse.figures.expert_parallel import latency_shares
from dlcourse.formulas.collective_time import fastest, fit_line
from dlcourse.peers import mpi
from dlcourse.words.text_table import text_table
from dlcourse.words.units import human_seconds

COLLECTIVES = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")
SIZES = (64, 4096, 65_536, 1 << 20, 8 << 20)  # bytes
TURNS = 3


def measure(names: Sequence[str], repeats: int) -> list[dict[str, Any]]:
    """Runs in every rank of Gloo."""
    from dlcourse.collectives.benchmark import measure

    return measure(names, SIZES, repeats=repeats)


def measure_mpi(comm: Any, repeats: int) -> list[dict[str, Any]]:
    """Runs in every rank of MPI."""
    from dlcourse.peers.mpi_collectives import collective_times

    return collective_times(comm, SIZES, repeats=repeats)


def main(argv: Sequence[str] | None = None) -> int:
    """Print alpha and beta of each; with --record, write all times. Always 0: it has no target."""
    parser = parser_of("backends", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10, help="calls of each in a turn")
    parser.add_argument("--collectives", nargs="+", choices=COLLECTIVES, default=COLLECTIVES)
    parser.add_argument("--record", type=Path, help="write the times to this file")
    args = parser.parse_args(argv)
    names = [f"torch_{name}" for name in args.collectives]
    names += [f"shared_{name}" for name in args.collectives]
    names += ["one_sided_all_to_all"] if "all_to_all" in args.collectives else []
    rows: list[Mapping[str, Any]] = []
    lacking = mpi.missing(args.ranks)
    with Ranks(args.ranks, device="cpu", default=False) as ranks:
        for _ in range(TURNS):
            rows += ranks.run(measure, names, args.repeats)[0]
            if not lacking:
                theirs = mpi.run_mpi(measure_mpi, args.repeats, num_ranks=args.ranks)[0]
                rows += [row for row in theirs if row["collective"] in args.collectives]
        dtypes = {} if mpi.missing() else mpi.run_mpi(_dtypes, num_ranks=2)[0]
    kept = fastest(rows)
    print(f"{args.ranks} ranks; the fastest of {TURNS * args.repeats} calls {lacking}")
    lines = []
    for name in dict.fromkeys(row["algorithm"] for row in kept):
        points = [(row["bytes"], row["seconds"]) for row in kept if row["algorithm"] == name]
        alpha, beta, error = fit_line(points)
        rate = f"{1e-9 / beta:.2f}" if beta else ""
        lines.append([name, human_seconds(alpha), rate, f"{error:.0%}"])
    print(text_table(("call", "alpha", "GB/s", "error of the fit"), lines))
    if args.record:
        record = {
            "about": "Fastest call of each collective: Gloo (torch_), MPI (mpi_), shared memory.",
            "command": "python -m dlcourse.bench.backends --record data/backends.json",
            "machine": f"{machine.cores()} CPU cores, {platform.system()} {platform.machine()}",
            "versions": _versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "rows": kept,
            "mpi_dtypes": dtypes,
        }
        args.record.write_text(json.dumps(record, indent=1) + "\n")
        print(claims_on(kept))
    return 0


def claims_on(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures of claims that rest on a record, to be written where the claims stand."""
    shares, ratio = latency_shares(rows), figures_of_c7(rows)
    said = [f"C4 {name} {value:.1f}" for name, value in shares.items()]
    said += [f"C7 {name} {value:.2f}" for name, value in ratio.items()]
    where = "notebooks/source/*/claims.toml"
    if not said:
        return "no claim rests on it"
    return f"in {where}, with today's date, and then dlcourse build: {', '.join(said)}"


def _dtypes(comm: Any) -> dict[str, str]:
    from dlcourse.peers.mpi_collectives import try_dtypes

    return try_dtypes(comm)


def _versions() -> str:
    from importlib.metadata import version

    names = ["torch", *([] if mpi.missing() else ["mpi4py", "mpich"])]
    return ", ".join(f"{name} {version(name)}" for name in names)


if __name__ == "__main__":
    raise SystemExit(main())
