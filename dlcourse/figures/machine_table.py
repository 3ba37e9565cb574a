"""A table of what this machine has, and what follows for the lessons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlcourse.figures.tables import Table
from dlcourse.machine import find_machine
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    from dlcourse.ranks import Ranks


def machine_table(ranks: Ranks, lang: str | None = None) -> Table:
    """What this machine has, as rank 0 finds it, and what follows for the lessons."""
    found, num_ranks = ranks.run(find_machine, ranks=[0])[0], len(ranks)
    gpus, cores = found["gpus"], found["cores"]
    own_gpu = found["device"] == "cuda"
    shared = "machine.cores.shared" if cores < num_ranks else "machine.cores.own"
    rows = [
        ("cores", str(cores), t(shared, lang, ranks=num_ranks, cores=cores)),
        (
            "memory",
            human_bytes(found["memory_bytes"]),
            t("machine.memory.fits", lang, ranks=found["fitting_ranks"]),
        ),
        (
            "gpus",
            "\n".join(gpus) or "–",
            t(f"machine.gpus.{'own' if own_gpu else 'few' if gpus else 'none'}", lang),
        ),
        (
            "nvlink",
            t("machine.yes" if found["nvlink"] else "machine.no", lang),
            t(f"machine.nvlink.{'here' if found['nvlink'] else 'none'}", lang),
        ),
        (
            "mps",
            t("machine.yes" if found["mps"] else "machine.no", lang),
            t(f"machine.mps.{'here' if found['mps'] else 'none'}", lang),
        ),
        ("backend", found["backend"], t(f"machine.backend.{'nccl' if own_gpu else 'gloo'}", lang)),
    ]
    head = [t(f"machine.row.{name}", lang) for name in ("what", "here", "so")]
    return Table(head, [(t(f"machine.row.{name}", lang), a, b) for name, a, b in rows])
