"""The planner's answer as tables for a notebook: the choice, why others lost, what more changes.

``report.py`` says the same as text, for a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dlcourse.corpus import course_folder
from dlcourse.figures.held import Said, Together
from dlcourse.figures.tables import Table
from dlcourse.plan.layout_time import SECONDS
from dlcourse.plan.planner import Answer
from dlcourse.plan.published import SETS, read
from dlcourse.plan.report import changes, count, layout_text, why_text
from dlcourse.words.strings import t

# The ways that the lesson talks about, from the simplest on
_WAYS = ("ddp", "zero1", "zero2", "zero3", "offload", "tensor", "pipeline", "both", "expert")


def show_choice(answer: Answer) -> Together:
    """The fastest layout and the simplest within 5% of it, side by side."""
    chosen = {"fastest": answer.fastest, "simplest": answer.simplest}
    numbers = {name: answer.numbers(index) for name, index in chosen.items()}
    rows = [[t("plan.column.layout"), *(_lines(answer, i) for i in chosen.values())]]
    rows.append([t("plan.table.step"), *(f"{n['seconds']:.2f} s" for n in numbers.values())])
    for name in SECONDS:
        spent = [float(answer.seconds[name][index]) for index in chosen.values()]
        if max(spent) >= 0.005:
            rows.append([f"  {t(f'plan.seconds.{name}')}", *(f"{s:.2f} s" for s in spent)])
    rows.append([t("plan.table.mfu"), *(f"{100 * n['mfu']:.1f}%" for n in numbers.values())])
    held = [f"{n['memory'] / 1e9:.1f} GB" for n in numbers.values()]
    limit = f"{answer.job.cluster.memory / 1e9:.1f} GB"
    rows.append([t("plan.table.memory", limit=limit), *held])
    head = ["", *(t(f"plan.table.{name}") for name in chosen)]
    return Together(Said(count(answer)), Table(head, rows))


def show_rivals(answer: Answer, ways: Sequence[str] = _WAYS) -> Together:
    """The best layout of each way, why it is not the choice, and what a pipeline beside tensor
    ranks wins or loses."""
    found = answer.best_of_families()
    rows = [
        [
            t(f"plan.family.{name}"),
            _lines(answer, found[name]),
            f"{answer.memory['total'][found[name]] / 1e9:,.1f}",
            _broken(why_text(answer, found[name])),
        ]
        for name in ways
        if name in found
    ]
    table = Table([t(f"plan.column.{n}") for n in ("way", "layout", "memory_gb", "lost")], rows)
    gaps = {name: _gap(answer, found[name]) for name in ("both", "tensor") if name in found}
    if len(gaps) < 2 or None in gaps.values():
        return Together(table)
    return Together(table, Said(t("plan.both_and_tensor", **gaps)))


def _gap(answer: Answer, index: int) -> str | None:
    """How much longer than the fastest, "3.1%"; None for a layout that does not fit."""
    if not answer.fits[index]:
        return None
    seconds = answer.seconds["total"]
    return f"{100 * float(seconds[index] / seconds[answer.fastest] - 1):.1f}%"


def show_changes(answer: Answer) -> Table:
    """What one more GPU, one more node, or the next memory size would change."""
    heads = [t("plan.more"), ""]
    return Table(heads, [list(line) for line in changes(answer)])


def show_published(names: Sequence[str]) -> Together:
    """Runs that others measured beside the planner's prediction; nothing is fitted to them.

    Args:
        names: of ``published.SETS``.
    """
    data = read(course_folder() / "data" / "published_runs.json")
    found = {name: SETS[name](data) for name in names}
    rows = [
        [
            t(f"plan.published.{name}"),
            _run_text(row.name),
            _four_digits(row.measured),
            _four_digits(row.predicted),
            f"{100 * row.error:+.0f}%",
        ]
        for name, of_set in found.items()
        for row in of_set
    ]
    keys = ("set", "run", "measured", "predicted", "error")
    off = [100 * abs(row.error) for of_set in found.values() for row in of_set]
    words = {"mean": f"{sum(off) / len(off):.0f}%", "most": f"{max(off):.0f}%"}
    sources = " · ".join(data[name]["source"] for name in names)
    return Together(
        Table([t(f"plan.published.{key}") for key in keys], rows),
        Said(t("plan.published.off", **words)),
        Said(t("plan.published.source", sources=sources)),
    )


def _four_digits(value: float) -> str:
    """Of what is large all digits, never 1.064e+04."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _run_text(name: str) -> str:
    """A published run's name, its words in the reader's language: "8 GPUs", "4 chunks", "full"."""
    said = {
        r"(\d+) GPUs": lambda found: t("plan.published.gpus", n=int(found[1])),
        r"context (\d+)": lambda found: t("plan.layout.context", n=found[1]),
        r"(\d+) chunks": lambda found: t("plan.layout.chunks", n=found[1]),
        r" (full|selective)$": lambda found: ", " + t(f"plan.layout.recompute.{found[1]}"),
        r"(\d+) x (\d+)": lambda found: t(
            "plan.published.batch", tokens=int(found[1]), sequences=found[2]
        ),
    }
    for pattern, words in said.items():
        name = re.sub(pattern, words, name)
    return name


def _broken(text: str) -> str:
    """A clause on two lines, so that four columns fit a page."""
    for mark in (": ", ", ", " ("):
        head, found, rest = text.partition(mark)
        if found:
            return f"{head}{mark.rstrip()}\n{rest}" if mark != " (" else f"{head}\n({rest}"
    return text


def _lines(answer: Answer, index: int) -> str:
    """A layout on up to three lines: how ranks are divided; stage and micro-batch; the rest."""
    sides, stage, micro_batch, *rest = layout_text(answer.layouts[index]).split(", ")
    return "\n".join([sides, f"{stage}, {micro_batch}", *rest])
