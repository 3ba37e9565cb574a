"""Tables and figures of lesson 00: this machine, memory, two axes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from dlcourse.figures.charts import bars_figure
from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.tables import Table
from dlcourse.machine import find_machine
from dlcourse.measure.process_memory import pss_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    from dlcourse.ranks import Ranks

NONE = "–"


def machine_table(ranks: Ranks, lang: str | None = None) -> Table:
    """What this machine has, as rank 0 finds it, and what follows for the lessons."""
    found, num_ranks = ranks.run(find_machine, ranks=[0])[0], len(ranks)
    gpus, cores = found["gpus"], found["cores"]
    own_gpu = found["device"] == "cuda"
    shared = "start.cores.shared" if cores < num_ranks else "start.cores.own"
    rows = [
        ("cores", str(cores), t(shared, lang, ranks=num_ranks, cores=cores)),
        (
            "memory",
            human_bytes(found["memory_bytes"]),
            t("start.memory.fits", lang, ranks=found["fitting_ranks"]),
        ),
        (
            "gpus",
            "\n".join(gpus) or NONE,
            t(f"start.gpus.{'own' if own_gpu else 'few' if gpus else 'none'}", lang),
        ),
        (
            "nvlink",
            _yes(found["nvlink"], lang),
            t(f"start.nvlink.{'here' if found['nvlink'] else 'none'}", lang),
        ),
        (
            "mps",
            _yes(found["mps"], lang),
            t(f"start.mps.{'here' if found['mps'] else 'none'}", lang),
        ),
        ("backend", found["backend"], t(f"start.backend.{'nccl' if own_gpu else 'gloo'}", lang)),
    ]
    head = [t(f"start.machine.{name}", lang) for name in ("what", "here", "so")]
    return Table(head, [(t(f"start.machine.{name}", lang), a, b) for name, a, b in rows])


def memory_together() -> int:
    """Bytes of all processes that the notebook has started: the ranks and what starts them.

    A page that several processes share counts once (PSS). Where the system has no PSS (macOS),
    only what each process has for itself counts (USS).
    """
    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            total += pss_bytes(process)
    return total


def memory_figure(one: int, together: int, num_ranks: int, lang: str | None = None) -> Any:
    """Bytes of ``num_ranks`` times one process, and of all processes together (plotly)."""
    labels = [t("start.memory.label.times", lang, ranks=num_ranks),
              t("start.memory.label.together", lang)]  # fmt: skip
    title = t("start.memory.title", lang, ranks=num_ranks, ratio=f"{together / one:.1f}")
    axis = t("start.memory.axis", lang)
    return bars_figure(
        labels, [num_ranks * one, together], axis=axis, title=title, unit="bytes", lang=lang
    )


def optimizer_figure(by_strategy: Mapping[str, int], lang: str | None = None) -> Any:
    """Bytes of optimizer state under "data", "zero1" and "zero3" (plotly)."""
    percent = {name: round(100 * n / by_strategy["data"]) for name, n in by_strategy.items()}
    return bars_figure(
        [t(f"start.strategy.{name}", lang) for name in by_strategy],
        list(by_strategy.values()),
        axis=t("start.optimizer.axis", lang),
        title=t("start.optimizer.title", lang, **percent),
        unit="bytes",
        colors=[CATEGORIES["optimizer_state"]] * len(by_strategy),
        lang=lang,
    )


def axes_table(
    results: Mapping[tuple[str, str], Mapping[str, Any]], lang: str | None = None
) -> Table:
    """Loss after the last step, strategies down and architectures across."""
    architectures = list(dict.fromkeys(a for a, _ in results))
    strategies = list(dict.fromkeys(s for _, s in results))
    rows = [
        [t(f"start.strategy.{s}", lang)]
        + [f"{results[a, s]['losses'][-1]:.6f}" for a in architectures]
        for s in strategies
    ]
    head = [t("start.strategy", lang)] + [t(f"start.architecture.{a}", lang) for a in architectures]
    return Table(head, rows, caption=t("start.axes.caption", lang))


def largest_gap(results: Mapping[tuple[str, str], Mapping[str, Any]]) -> float:
    """Largest difference of any step's loss from that of the same model trained alone."""
    return max(
        abs(loss - alone)
        for (architecture, _), result in results.items()
        for loss, alone in zip(
            result["losses"], results[architecture, "alone"]["losses"], strict=True
        )
    )


def _yes(value: bool, lang: str | None) -> str:
    return t("start.yes" if value else "start.no", lang)
