"""What lessons call beside the ranks: predict, compare, show the source, give a verdict.

Every helper shows its result itself (HTML or Markdown in a notebook, text elsewhere) and returns
an object with the numbers, which shows nothing more when it ends a cell.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dlcourse.course import catalog, metrics
from dlcourse.course.claims import Claim, find_claim, next_lesson, origin, quantity
from dlcourse.course.exercises import check, hint, solution
from dlcourse.course.fill import find_source, split_reference
from dlcourse.course.showing import Shown, display, html_table, say, shell, show_code
from dlcourse.words.strings import language, set_language, set_lesson_words, t

__all__ = [
    "check",
    "claim",
    "compare",
    "hint",
    "lesson",
    "predict",
    "record_metric",
    "show",
    "solution",
]

Number = int | float
_predictions: dict[str, Prediction] = {}
_hooked: list[Any] = []  # shells that report recorded cells already


@dataclass(frozen=True)
class Prediction(Shown):
    """A number (or an answer) given before measuring. ``value`` is the guess, or the formula's."""

    id: str
    guess: Number | str | None
    formula: Number | str | None
    unit: str = ""

    @property
    def value(self) -> Number | str:
        value = self.formula if self.guess is None else self.guess
        assert value is not None  # predict() refuses a prediction without either
        return value


@dataclass(frozen=True)
class Comparison(Shown):
    """Measured beside predicted. ``ratio`` is measured / predicted, None for words or zero."""

    id: str
    predicted: Number | str | None
    measured: Number | str
    ratio: float | None


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


def predict(
    id: str, guess: Any, *, formula: Number | str | Callable[[], Any] | None = None, unit: str = ""
) -> Prediction:
    """Keep a prediction for `compare`. Leave ``guess`` as ``...`` to take the formula's answer.

    Args:
        id: name of the prediction, such as ``"03.bytes"``.
        guess: the learner's number or word, or ``...``.
        formula: the answer that theory gives, or a function that computes it.
        unit: ``"bytes"`` and ``"s"`` are scaled (MiB, ms); any other unit is shown as it is.

    Raises:
        ValueError: the guess is neither number, word nor ``...``, or nothing is predicted.
    """
    if isinstance(guess, bool) or not (guess is ... or isinstance(guess, int | float | str)):
        raise ValueError(f"guess={guess!r}: give a number, a word in quotes, or ... to leave it")
    answer = _number(formula() if callable(formula) else formula)
    if guess is ... and answer is None:
        raise ValueError(f"predict({id!r}, ...) has no formula: give a number instead of ...")
    prediction = Prediction(id, None if guess is ... else guess, answer, unit)
    _predictions[id] = prediction
    if guess is ...:
        say(t("predict.left_open", formula=quantity(prediction.value, unit)))
    else:
        say(t("predict.yours", guess=quantity(guess, unit)))
    metrics.append("prediction", id=id, guess=prediction.guess, formula=answer, unit=unit)
    return prediction


def compare(id: str, measured: Any, *, unit: str | None = None) -> Comparison:
    """Show a measured number beside its prediction.

    ``measured`` is a number, a word, or one value for each rank if they are all equal.

    Raises:
        ValueError: ``measured`` is something else, or differs between ranks.
    """
    measured = _one_value(measured)
    prediction = _predictions.get(id)
    unit = (prediction.unit if prediction else "") if unit is None else unit
    rows: list[tuple[str, str]] = []
    if prediction and prediction.guess is not None:
        rows.append((t("compare.guess"), quantity(prediction.guess, unit)))
    if prediction and prediction.formula is not None:
        rows.append((t("compare.formula"), quantity(prediction.formula, unit)))
    rows.append((t("compare.measured"), quantity(measured, unit)))
    predicted = prediction.value if prediction else None
    ratio = None
    if isinstance(predicted, int | float) and isinstance(measured, int | float):
        if predicted:
            ratio = measured / predicted
            rows.append((t("compare.ratio"), f"{ratio:.3g}"))
    elif predicted is not None:
        rows.append(("", t("compare.same" if predicted == measured else "compare.different")))
    note = "" if prediction else t("compare.no_prediction", id=id)
    _table(id, rows, note)
    metrics.append(
        "comparison", id=id, predicted=predicted, measured=measured, ratio=ratio, unit=unit
    )
    return Comparison(id, predicted, measured, ratio)


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
    values = {name: _number(value) for name, value in measured.items()}
    _show_claim(found, values)
    metrics.append("claim", id=id, verdict=found.verdict, measured=values)
    return Verdict(found, values)


def record_metric(name: str, value: Any, unit: str = "") -> None:
    """Put a number into the JSON of a headless run; does nothing when the lesson is read."""
    metrics.append("metric", name=name, value=value, unit=unit)


def _show_claim(found: Claim, measured: dict[str, Any]) -> None:
    verdict = t(f"claim.verdict.{found.verdict}")
    if found.verdict == "not_tested_yet":
        verdict += f" ({t('claim.tested_in', lesson=next_lesson(found, catalog.course_root()))})"
    lang = language()
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


def _table(title: str, rows: Sequence[tuple[str, str]], note: str) -> None:
    lines = [title, *(f"  {name}: {value}" if name else f"  {value}" for name, value in rows)]
    page = html_table([title, ""], [list(row) for row in rows])
    if note:
        lines.append(f"  {note}")
        page += f"<p>{html.escape(note)}</p>"
    display({"text/plain": "\n".join(lines), "text/html": page})


def _number(value: Any) -> Any:
    """A NumPy scalar as a plain number; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


def _one_value(measured: Any) -> Number | str:
    measured = _number(measured)
    if isinstance(measured, list | tuple) or hasattr(measured, "tolist"):
        values = [_number(v) for v in measured]
        if values and all(v == values[0] for v in values):
            return _one_value(values[0])
        raise ValueError(
            f"measured={measured!r} differs between ranks: pass one value, such as max(...)"
        )
    if isinstance(measured, bool) or not isinstance(measured, int | float | str):
        raise ValueError(f"measured={measured!r}: give a number or a word")
    return measured


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
