"""What lessons call beside the ranks: show the source, give a verdict, and what is imported here.

Every helper shows its result itself (HTML or Markdown in a notebook, text elsewhere) and returns
an object with the numbers, which shows nothing more when it ends a cell.
"""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from typing import Any

from dlcourse.course import catalog, metrics
from dlcourse.course.claims import Claim, find_claim, next_lesson, origin, quantity, verdict_text
from dlcourse.course.colab import old_torch
from dlcourse.course.exercises import check, hint, solution
from dlcourse.course.fill import find_source, split_reference
from dlcourse.course.guesses import show_guesses
from dlcourse.course.predictions import compare, plain_number, predict
from dlcourse.course.questions import quiz
from dlcourse.course.showing import Shown, display, html_table, say, shell, show_code
from dlcourse.words.strings import language, set_language, set_lesson_words, t

__all__ = [
    "check",
    "claim",
    "compare",
    "hint",
    "lesson",
    "predict",
    "quiz",
    "record_metric",
    "show",
    "show_guesses",
    "solution",
]

_hooked: list[Any] = []  # shells that report recorded cells already


@dataclass(frozen=True)
class Verdict(Shown):
    """A claim as it was shown, with what this lesson measured for it."""

    claim: Claim
    measured: dict[str, float]

    @property
    def verdict(self) -> str:
        return self.claim.verdict


def lesson(*, lang: str = "ko", name: str = "") -> None:
    """Start a lesson: sets the language of every word shown, here and in ranks started later.

    ``name`` is the lesson's room, whose ``words.toml`` has the words that only this lesson uses.
    Says so where torch is older than the course asks for, as Colab's own may be.

    Raises:
        ValueError: ``lang`` is not "ko" or "en".
    """
    catalog.check_language(lang)
    set_language(lang)
    os.environ["DLCOURSE_LANG"] = lang
    if name:
        set_lesson_words(catalog.words_path(catalog.course_root(), name))
    metrics.append("lesson", name=name, lang=lang)
    _report_recorded_cells()
    if said := old_torch():
        say(said)


def show(reference: str) -> None:
    """Show the real source of ``"module:Name[,Name2]"``, read-only, without importing it."""
    module, names = split_reference(reference)
    found = [find_source(module, name) for name in names]
    titles = []
    for source in found:
        package = source.path.parents[source.module.count(".")]
        titles.append(
            t(
                "show.where",
                path=source.path.relative_to(package).as_posix(),
                first=source.line,
                last=source.line + source.code.count("\n"),
            )
        )
    show_code(*(source.code for source in found), titles=titles)


def claim(id: str, **measured: float) -> Verdict:
    """Show a claim's verdict and the figures it rests on, beside what this lesson measured.

    Args:
        id: such as ``"B1"``.
        measured: values measured in this lesson, by the name of the claim's figure.

    Raises:
        ValueError: no such claim, or no such figure in it.
    """
    found = find_claim(id)
    names = {figure.name for figure in found.figures}
    for name in measured:
        if names and name not in names:
            raise ValueError(f"claim {id} has no figure {name!r}; it has: {', '.join(names)}")
    values = {name: plain_number(value) for name, value in measured.items()}
    _show_claim(found, values)
    metrics.append("claim", id=id, verdict=found.verdict, measured=values)
    return Verdict(found, values)


def record_metric(name: str, value: Any, unit: str = "") -> None:
    """Put a number into the JSON of a headless run; does nothing when the lesson is read."""
    metrics.append("metric", name=name, value=value, unit=unit)


def _show_claim(found: Claim, measured: dict[str, Any]) -> None:
    lang = language()
    verdict = verdict_text(found, lang)
    if found.verdict == "not_tested_yet":
        verdict += f" ({t('claim.tested_in', lesson=next_lesson(found, catalog.course_root()))})"
    lines = [f"{found.id}: {found.statement[lang]}", f"{t('claim.verdict')}: {verdict}"]
    if found.condition:
        lines.append(found.condition[lang])
    lines.append(f"{t('claim.how')}: {found.how[lang]}")
    head = [t("claim.figure"), t("claim.here"), t("claim.recorded"), t("claim.origin")]
    rows = []
    for figure in found.figures:
        here = measured.get(figure.name)
        rows.append(
            [
                figure.label[lang],
                "" if here is None else quantity(here, figure.unit),
                quantity(figure.value, figure.unit),
                origin(figure, lang),
            ]
        )
    if not found.figures:
        rows = [[name, quantity(value), "", ""] for name, value in measured.items()]
    text = "\n".join([*lines, *("  " + " | ".join(row) for row in rows)])
    first, *rest = (html.escape(line) for line in lines)
    page = f"<p><strong>{first}</strong></p>" + "".join(f"<p>{line}</p>" for line in rest)
    if rows:
        page += html_table(head, rows)
    display({"text/plain": text, "text/html": page})


def _report_recorded_cells() -> None:
    """After each cell, put the ranks' new recorded run into the metrics of a headless run."""
    notebook = shell()
    if notebook is None or notebook in _hooked or not os.environ.get(metrics.VARIABLE):
        return
    reported: list[Any] = [None]

    def report(*_: Any) -> None:
        last = _last_run()
        if last is not None and last is not reported[0]:
            reported[0] = last
            metrics.append("run", ranks=metrics.run_summary(last.records))

    notebook.events.register("post_run_cell", report)
    _hooked.append(notebook)


def _last_run() -> Any:
    """The last recorded run of the notebook's ranks, or None."""
    from dlcourse.ranks import default_pool

    try:
        return default_pool().last
    except ValueError:  # no ranks yet
        return None
