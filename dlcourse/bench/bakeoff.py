"""The bake-off: one GPT and one text by every library, in real ranks; the table of lesson 15.

    dlcourse bench bakeoff
    dlcourse bench bakeoff --only DDP FSDP2 --ranks 2
    dlcourse bench bakeoff --record data/bakeoff.json      # what lesson 15 falls back on

Horovod has no package for a torch of today: `python -m dlcourse.peers.horovod_wheel OUT` builds
one, ``pip install --target DIR OUT/*.whl`` puts it aside, and PYTHONPATH=DIR lets it take part.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dlcourse import machine
from dlcourse.bench._options import parser_of
from dlcourse.figures.bakeoff import show_bakeoff
from dlcourse.peers.bakeoff import CONTESTANTS, TOLERANCE, run_bakeoff


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 where every library that is here ran, and trained as one process does."""
    parser = parser_of("bakeoff", __doc__)
    parser.add_argument("--ranks", type=int, default=4, help="processes of each (default: 4)")
    parser.add_argument("--turns", type=int, default=6, help="timed steps of each (default: 6)")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that each gets")
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--record", type=Path, help="write the rows to this file")
    args = parser.parse_args(argv)
    rows = run_bakeoff(
        args.only,
        ranks=args.ranks,
        turns=args.turns,
        limit=args.limit,
        told=lambda row: print(f"{row['name']}: {row['state']} {row.get('why', '')}", flush=True),
    )
    if args.record:
        write_record(args.record, rows, turns=args.turns)
    failed = [row["name"] for row in rows if row["state"] == "failed"]
    apart = [row["name"] for row in rows if not row.get("gap", 0) <= TOLERANCE]
    if apart:
        print(f"other losses than one process: {', '.join(apart)}")
        return 1
    print(show_bakeoff(rows))
    return 1 if failed else 0


def write_record(path: Path, rows: Sequence[Mapping[str, Any]], *, turns: int) -> None:
    """The rows, and where and with what they were measured."""
    ranks = rows[0]["ranks"]
    threads = machine.threads_per_rank(ranks)
    record = {
        "about": "The same GPT and batches by each library; rows as run_bakeoff returns them.",
        "command": f"dlcourse bench bakeoff --turns {turns} --record data/bakeoff.json",
        "machine": f"{machine.cores()} CPU cores, {platform.system()} {platform.machine()}, Gloo",
        "threads": threads,
        "versions": f"Python {platform.python_version()}, torch {version('torch')}",
        "date": datetime.now(UTC).date().isoformat(),
        "ranks": ranks,
        "rows": rows,
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
