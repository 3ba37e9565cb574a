"""Predictions: asked for before a measurement, and compared with it afterwards.

    predict("09.peak")                  # a line to type into; headless, the formula answers
    compare("09.peak", measured)        # yours, the formula's, measured, and the reason

The formula and the reason are not in the cell, where they would be the answer: they are in the
lesson's room, in ``predictions.py``, a dict ``PREDICTIONS`` from the id to an ``Asked``.
"""

from __future__ import annotations

import html
import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlcourse.course import catalog, guesses, metrics
from dlcourse.course.amounts import read_amount
from dlcourse.course.claims import quantity
from dlcourse.course.showing import Shown, display, html_table, say
from dlcourse.panel.widget import VIEW, front_end_present, widgets_installed
from dlcourse.words.strings import language, t

Number = int | float
_SCALED = {"bytes": "B", "s": "s"}  # units that a number is rarely typed in: "28" is not 28 MiB
# What the empty line shows: amounts that are no lesson's answer
EXAMPLES = {"bytes": "3.2 MiB", "s": "12 ms", "%": "37%", "×": "2.7"}
EXAMPLE = "2.7"  # of any other unit
_predictions: dict[str, Prediction] = {}


@dataclass(frozen=True)
class Asked:
    """What a lesson asks for.

    Attributes:
        formula: the answer that theory gives, without a measurement.
        reason: key, among the lesson's own words, of the sentence that says why the measurement
            is as it is. It may have the fields {formula}, {measured} and {difference}.
        unit: ``"bytes"`` and ``"s"`` are scaled (MiB, ms); any other unit is shown as it is.
    """

    formula: Callable[[], Number | str]
    reason: str
    unit: str = ""


@dataclass(frozen=True)
class Prediction(Shown):
    """A number (or an answer) given before measuring. ``value`` is the guess, or the formula's.

    ``typed`` is the guess as it was typed in a front end.
    """

    id: str
    guess: Number | str | None
    formula: Number | str | None
    unit: str = ""
    typed: str = ""

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


def predict(
    id: str,
    guess: Any = ...,
    *,
    formula: Number | str | Callable[[], Any] | None = None,
    unit: str | None = None,
) -> Prediction:
    """Ask for a prediction, or keep one, for `compare`.

    Where the lesson's room knows the id, and somebody is there to type, this shows a line to type
    into. What was typed stays when the cell runs again. Elsewhere the formula answers.

    Args:
        id: name of the prediction, such as ``"03.bytes"``.
        guess: a number or word given in the cell; ``...`` is none.
        formula: the answer that theory gives, for an id that the room does not know.
        unit: ``"bytes"`` and ``"s"`` are scaled (MiB, ms); any other unit is shown as it is.

    Raises:
        ValueError: the id is no text, the guess is neither number, word nor ``...``, or nothing
            is predicted.
    """
    _check_id(id)
    if isinstance(guess, bool) or not (guess is ... or isinstance(guess, int | float | str)):
        raise ValueError(f"guess={guess!r}: give a number, a word in quotes, or ... to leave it")
    asked = find_asked(id) if formula is None else None
    if asked is not None:
        formula, unit = asked.formula, asked.unit if unit is None else unit
    answer = plain_number(formula() if callable(formula) else formula)
    if guess is ... and answer is None:
        raise ValueError(
            f"predict({id!r}) has no formula: {_known(id)}. Correct the id, or give a number, or "
            "formula=..."
        )
    prediction = Prediction(id, None if guess is ... else guess, answer, unit or "")
    somebody = front_end_present()
    typing = asked is not None and guess is ... and somebody and widgets_installed()
    if typing and (before := _predictions.get(id)):
        prediction = replace(prediction, guess=before.guess, typed=before.typed)
    _predictions[id] = prediction
    if typing:
        _ask(prediction)
    elif guess is ...:
        key = "predict.by_formula" if asked else "predict.left_open"
        say(t(key, formula=quantity(prediction.value, prediction.unit)))
    else:
        said = t("predict.yours", guess=quantity(guess, prediction.unit))
        say(f"{said}\n{_keep(prediction)}".strip() if somebody else said)
    guess = prediction.guess
    metrics.append("prediction", id=id, guess=guess, formula=answer, unit=prediction.unit)
    return prediction


def compare(id: str, measured: Any, *, unit: str | None = None) -> Comparison:
    """Show a measured number beside its prediction, and the reason where the room knows one.

    ``measured`` is a number, a word, or one value for each rank if they are all equal. Nobody has
    to have typed a prediction: then the formula's stands beside the measured one.

    Raises:
        ValueError: the id is no text, ``measured`` is something else, or differs between ranks.
    """
    _check_id(id)
    measured = _one_value(measured)
    asked, prediction = find_asked(id), _predictions.get(id)
    if prediction is None and asked is not None:  # the cell that predicts has not run
        prediction = Prediction(id, None, plain_number(asked.formula()), asked.unit)
    unit = (prediction.unit if prediction else "") if unit is None else unit
    rows: list[tuple[str, str]] = []
    if prediction and prediction.guess is not None:
        rows.append((t("compare.guess"), quantity(prediction.guess, unit)))
    if prediction and prediction.formula is not None:
        rows.append((t("compare.formula"), quantity(prediction.formula, unit)))
    rows.append((t("compare.measured"), quantity(measured, unit)))
    predicted = prediction.value if prediction else None
    if prediction and prediction.guess is not None and front_end_present():
        guesses.keep_measured(id, measured)
    ratio = None
    if isinstance(predicted, int | float) and isinstance(measured, int | float):
        if predicted:
            ratio = measured / predicted
            rows.append((t("compare.ratio"), f"{ratio:.3g}"))
    elif predicted is not None:
        rows.append(("", t("compare.same" if predicted == measured else "compare.different")))
    notes = []
    if prediction is None:
        notes.append(t("compare.no_prediction", id=id))
    elif asked is not None:
        if prediction.guess is None:
            notes.append(t("compare.by_formula"))
        notes.append(_reason(id, asked, prediction.formula, measured, unit))
    _show(id, rows, notes)
    metrics.append(
        "comparison", id=id, predicted=predicted, measured=measured, ratio=ratio, unit=unit
    )
    return Comparison(id, predicted, measured, ratio)


def _check_id(id: Any) -> None:
    if not isinstance(id, str):
        raise ValueError(f'id={id!r}: give a text, as "03.bytes"')


def find_asked(id: str) -> Asked | None:
    """What the room of the lesson with this number asks under this id; None if nothing."""
    for name in catalog.written_lessons(catalog.course_root()):
        if id.startswith(f"{name[:2]}."):
            return _predictions_of(name).get(id)
    return None


def _predictions_of(lesson: str) -> Mapping[str, Asked]:
    return read_predictions(catalog.room(catalog.course_root(), lesson) / "predictions.py")


def read_predictions(path: Path) -> Mapping[str, Asked]:
    """What a lesson's file asks for; nothing where there is no file."""
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location(f"predictions_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PREDICTIONS


def _known(id: str) -> str:
    """What the room of this id's lesson has, in words."""
    for name in catalog.written_lessons(catalog.course_root()):
        if id.startswith(f"{name[:2]}."):
            asked = ", ".join(_predictions_of(name)) or "none"
            return f"predictions.py of {name} has {asked}"
    return "no lesson has that number"


def plain_number(value: Any) -> Any:
    """A NumPy scalar as a plain number; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value


def _ask(prediction: Prediction) -> None:
    """A line to type the prediction into, with an answer under it; Enter or Tab ends the typing."""
    from IPython.display import display as show
    from ipywidgets import HTML, Text, VBox

    id, unit = prediction.id, prediction.unit
    example = EXAMPLES.get(unit, EXAMPLE)
    guess = prediction.guess
    line = Text(
        value=prediction.typed,
        description=t("predict.ask", id=id),
        placeholder=t("predict.example", example=example),
        continuous_update=False,
        style={"description_width": "initial"},
        layout={"width": "420px", "max_width": "100%"},
    )
    answer = HTML("" if guess is None else _noted(guess, unit))
    answer.add_class("dlc-predict-answer")

    def typed(change: Any) -> None:
        text = change["new"].strip()
        try:
            number = read_amount(text, unit) if text else None
        except ValueError:
            answer.value = html.escape(t("predict.unreadable", text=text, example=example))
            return
        _predictions[id] = replace(_predictions[id], guess=number, typed=text)
        answer.value = "" if number is None else _noted(number, unit)
        if number is not None and unit in _SCALED and not re.search(r"[^\W\d_]", text):
            answer.value += " " + html.escape(t("predict.no_unit", unit=_SCALED[unit]))
        if number is not None and (said := _keep(_predictions[id])):
            answer.value += " " + html.escape(said)

    line.observe(typed, "value")
    box = VBox([line, answer])
    box.add_class("dlc-predict")
    # ipywidgets 7, which Colab has, has no _repr_mimebundle_.
    view = {VIEW: {"version_major": 2, "version_minor": 0, "model_id": box.model_id}}
    # What Jupyter keeps for where no widget is drawn: without its kernel, or trust
    show({**view, "text/plain": t("predict.without_kernel")}, raw=True)


def _keep(prediction: Prediction) -> str:
    """Keep the guess for the end of the course; a sentence where that cannot be, else nothing."""
    guess = prediction.guess
    assert guess is not None
    if guesses.keep_guess(prediction.id, guess, prediction.formula, prediction.unit):
        return ""
    return t("guesses.not_kept", path=guesses.shown_path())


def _noted(guess: Number | str, unit: str) -> str:
    return html.escape(t("predict.noted", guess=quantity(guess, unit)))


def _reason(id: str, asked: Asked, formula: Any, measured: Number | str, unit: str) -> str:
    difference = ""
    if isinstance(formula, int | float) and isinstance(measured, int | float):
        difference = quantity(abs(measured - formula), unit)
    shown = {"formula": quantity(formula, unit), "measured": quantity(measured, unit)}
    root = catalog.course_root()
    lesson = catalog.find_lesson(id[:2], root)
    words = catalog.own_words(root, lesson, asked.reason)[language()]
    return words.format(**shown, difference=difference)


def _show(title: str, rows: Sequence[tuple[str, str]], notes: Sequence[str]) -> None:
    lines = [title, *(f"  {name}: {value}" if name else f"  {value}" for name, value in rows)]
    lines += [f"  {note}" for note in notes]
    page = html_table([title, ""], [list(row) for row in rows])
    page += "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    display({"text/plain": "\n".join(lines), "text/html": page})


def _one_value(measured: Any) -> Number | str:
    measured = plain_number(measured)
    if isinstance(measured, list | tuple) or hasattr(measured, "tolist"):
        values = [plain_number(v) for v in measured]
        nan = all(v != v for v in values)  # NaN is not equal to itself
        if values and (nan or all(v == values[0] for v in values)):
            return _one_value(values[0])
        raise ValueError(
            f"measured={measured!r} differs between ranks: pass one value, such as max(...)"
        )
    if isinstance(measured, bool) or not isinstance(measured, int | float | str):
        raise ValueError(f"measured={measured!r}: give a number or a word")
    return measured
