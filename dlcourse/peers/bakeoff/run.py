"""Each contestant in ranks of its own: what one does, or breaks, is not felt by the others."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dlcourse.peers.bakeoff.contestants import CONTESTANTS, Contestant, missing
from dlcourse.ranks import RankError, Ranks

# Sums of float32 in another order differ by about 1e-7 of the loss at each step, and AdamW turns
# the smallest gradients, which are mostly rounding, into whole steps.
TOLERANCE = 2e-5

Row = dict[str, Any]


def run_bakeoff(
    names: Sequence[str | Contestant] | None = None,
    *,
    ranks: int = 4,
    turns: int = 6,
    limit: float = 120.0,
    batch_size: int = 8,
    device: str = "cpu",
    told: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Train the same GPT on the same batches by each library; real processes, one after another.

    Args:
        names: of `CONTESTANTS`, or a `Contestant` of your own; all of ours by default. "one
            process" always runs first: the others' losses are compared with its.
        ranks: processes of each.
        turns: timed steps of each, in turns with DDP's in the same ranks. There are two steps
            before them, so losses are compared over ``turns + 2`` steps.
        limit: seconds that a contestant gets; then its ranks are ended, and its row says so.
        batch_size: sequences of a step, over all ranks together.
        device: as `Ranks` takes it.
        told: called with each row as soon as there is one.

    Returns:
        A row for each, plain data, those of `CONTESTANTS` in its order:

        - "name", "strategy", "stage", "library", "version", "lines" (see `Contestant`), "ranks"
        - "state": "ran"; "missing" (not installed here) or "failed", and then "why" in words, and
          none of the following
        - "losses" of every step over the whole batch; "gap": their largest difference from one
          process's, at most `TOLERANCE` where all is well
        - "ratio": time of a step over DDP's, in the same ranks, the fastest of each
        - "memory": bytes by category at the peak of a step in the fullest rank, by the ledger
        - "process": bytes by which the process of a rank grows, measured (PSS), in the fullest
        - "sent": bytes over TCP that the rank which sends most sends in a step; None where the
          system does not count them
        - "calls": collectives and messages of that rank, as torch sees them

    Raises:
        ValueError: an unknown name, ranks that do not divide the batch, or no time.
    """
    chosen = _chosen(names)
    if isinstance(turns, bool) or not isinstance(turns, int) or turns < 1:
        raise ValueError(f"turns={turns!r}: give a whole number of at least 1")
    if not 0 < limit < float("inf"):
        raise ValueError(f"limit={limit!r}: give seconds, more than 0")
    if ranks < 1 or batch_size % ranks:
        raise ValueError(
            f"batch_size={batch_size} cannot be split over ranks={ranks}: give a multiple of it"
        )
    rows: list[Row] = []
    for contestant in chosen:
        row = _row(contestant, ranks)
        if why := missing(contestant):
            row |= {"state": "missing", "why": why}
        else:
            try:
                of_ranks = _in_own_ranks(contestant, ranks, turns, limit, batch_size, device)
                row |= {"state": "ran"} | _joined(contestant, of_ranks)
            except RankError as error:
                row |= {"state": "failed", "why": str(error)}
        if row["state"] == "ran" and rows and rows[0]["state"] == "ran":
            gaps = np.subtract(row["losses"], rows[0]["losses"])
            row["gap"] = float(np.abs(gaps).max())  # NaN where a loss is
        elif row["state"] == "ran" and not rows:
            row["gap"] = 0.0
        rows.append(row)
        told(row)
    return rows


def _chosen(names: Sequence[str | Contestant] | None) -> list[Contestant]:
    names = list(CONTESTANTS) if names is None else names
    for name in names:
        if not isinstance(name, Contestant) and name not in CONTESTANTS:
            raise ValueError(f"name {name!r} is unknown: give some of {', '.join(CONTESTANTS)}")
    chosen = [c for c in CONTESTANTS.values() if c.strategy == "alone" or c.name in names]
    return chosen + [own for own in names if isinstance(own, Contestant)]


def _row(contestant: Contestant, ranks: int) -> Row:
    return {
        "name": contestant.name,
        "strategy": contestant.strategy,
        "stage": contestant.stage,
        "library": contestant.library,
        "version": contestant.version,
        "ranks": ranks,
        "lines": contestant.lines(),
    }


def _in_own_ranks(
    contestant: Contestant, ranks: int, turns: int, limit: float, batch_size: int, device: str
) -> list[dict[str, Any]]:
    with Ranks(ranks, device=device, default=False) as pool:
        over = threading.Event()

        def end() -> None:
            over.set()
            for pid in pool.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(limit, end)
        timer.start()
        try:
            return pool.run(_measure, contestant, batch_size, turns)
        except RankError as error:
            if over.is_set():
                raise RankError(f"not over after {limit:g} s, so its ranks were ended") from error
            raise
        finally:
            timer.cancel()


def _measure(contestant: Contestant, batch_size: int, turns: int) -> dict[str, Any]:
    """Runs in every rank."""
    from dlcourse.peers.bakeoff.in_rank import measure
    from dlcourse.peers.bakeoff.job import Job

    return measure(contestant, Job(batch_size=batch_size), turns)


def _joined(contestant: Contestant, of_ranks: Sequence[dict[str, Any]]) -> Row:
    """One row out of what the ranks found: the fullest, the one that sends most."""
    knowing = of_ranks
    if contestant.strategy in ("alone", "pipeline"):  # one rank knows the loss, or all the same
        knowing = [max(of_ranks, key=lambda found: sum(found["losses"]))]
    sent = [found["sent"] for found in of_ranks if found["sent"] is not None]
    return {
        "losses": [
            sum(losses) / len(knowing)
            for losses in zip(*(found["losses"] for found in knowing), strict=True)
        ],
        "ratio": max(found["ratio"] for found in of_ranks),
        "memory": max((found["memory"] for found in of_ranks), key=lambda m: sum(m.values())),
        "process": max(found["process"] for found in of_ranks),
        "sent": max(sent) if sent else None,
        "calls": max(found["calls"] for found in of_ranks),
    }
