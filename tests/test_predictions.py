"""Predictions: the formula stays out of the cell, what is typed is understood, nothing is a dead
end."""

from __future__ import annotations

import math

import pytest

from dlcourse.course import catalog, predictions
from dlcourse.course.amounts import read_amount
from dlcourse.course.helpers import check, claim, hint, show, solution
from dlcourse.course.predictions import compare, find_asked, predict
from dlcourse.models.gpt import GPTConfig
from dlcourse.words.strings import set_language


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    set_language("en")
    monkeypatch.setattr(predictions, "_predictions", {})
    words = catalog.words_path(catalog.course_root(), "09_accumulation")
    monkeypatch.setenv("DLCOURSE_WORDS", str(words))  # as lesson(name=...) does


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("3.2 MB", "bytes", 3.2e6),
        ("3.2MiB", "bytes", 3.2 * 2**20),
        ("3e6", "bytes", 3e6),
        ("3,200,000", "bytes", 3.2e6),
        (" 12 ms ", "s", 0.012),
        ("2분", "s", 120),
        ("4×", "×", 4),
        ("4배", "×", 4),
        ("×4", "×", 4),
        ("x 4", "×", 4),
        ("25%", "%", 25),
        (".5", "", 0.5),
        ("7 B", "", 7e9),
        ("7 B", "bytes", 7),
    ],
)
def test_amounts_as_people_type_them(text, unit, number):
    assert read_amount(text, unit) == pytest.approx(number)


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("", ""),
        ("x4", "bytes"),
        ("x", "×"),
        ("much", "bytes"),
        ("3 s", "bytes"),
        ("3 4 MB x", "bytes"),
        ("1e999", ""),
        ("1e300 GB", "bytes"),
    ],
)
def test_what_is_no_amount_is_refused(text, unit):
    with pytest.raises(ValueError, match="is no"):
        read_amount(text, unit)


def test_headless_the_formula_answers_and_the_reason_comes_with_the_measurement(capsys):
    prediction = predict("09.no_sync")
    assert (prediction.guess, prediction.value, prediction.unit) == (None, 4, "×")
    assert "the formula answers: 4" in capsys.readouterr().out
    assert compare("09.no_sync", [4, 4]).ratio == 1
    with pytest.raises(ValueError, match="differs between ranks"):
        compare("09.no_sync", [4, 3])
    said = capsys.readouterr().out
    assert "Nothing was typed" in said and "fills every bucket" in said


def test_compare_without_predict_is_no_dead_end(capsys):
    """Also in the formula's unit, which the cell that predicts would have set."""
    found = compare("09.peak", 33_000_000)
    said = capsys.readouterr().out
    assert found.predicted == pytest.approx(29.4e6, rel=0.01)
    assert found.ratio == 33_000_000 / found.predicted and f"{found.ratio:.3g}" in said
    assert "MiB" in said and "the formula's prediction" in said
    assert "more: the sum of the gradients" in said


def test_what_a_run_that_diverged_gives_is_compared_all_the_same(capsys):
    predict("99.loss", 2.5)
    for measured in (math.nan, [math.nan] * 4, math.inf):
        assert not math.isfinite(compare("99.loss", measured).measured)
    assert capsys.readouterr().out.count("measured: nan") == 2
    with pytest.raises(ValueError, match="differs between ranks"):
        compare("99.loss", [math.nan, 1.0])


def test_an_id_that_is_no_text_is_refused_in_words():
    for ask in (predict, lambda id: compare(id, 1), check, hint, solution, claim, show):
        for id in (3, None, [], ("03.mean",), b"03.mean"):
            with pytest.raises(ValueError, match=r"give|choose"):
                ask(id)


def test_a_pool_that_is_none_is_refused_in_words():
    with pytest.raises(ValueError, match="pool=3: give the Ranks that hold your code"):
        check("03.mean", pool=3)


def test_a_guess_in_the_cell_and_a_formula_in_the_cell_work_as_before(capsys):
    assert predict("09.peak", 30e6).value == 30e6
    assert predict("77.mine", ..., formula=lambda: 6, unit="s").value == 6
    compare("77.mine", 6.0)
    said = capsys.readouterr().out
    assert "Left open, so the formula's answer is used: 6 s" in said and "typed" not in said
    with pytest.raises(ValueError, match="has no formula"):
        predict("77.other")
    with pytest.raises(ValueError, match=r"predictions\.py of 09_accumulation has 09\.peak"):
        predict("09.peek")


def test_no_cell_of_a_lesson_holds_the_formula_that_its_room_knows():
    root = catalog.course_root()
    for name in catalog.written_lessons(root):
        if (catalog.room(root, name) / "predictions.py").exists():
            source = catalog.source_path(root, name).read_text("utf-8")
            assert "predict(" in source and "formula=" not in source, name


def test_the_example_in_an_empty_line_is_no_lessons_answer():
    root = catalog.course_root()
    for name in catalog.written_lessons(root):
        asked = predictions.read_predictions(catalog.room(root, name) / "predictions.py")
        for id, each in asked.items():
            example = predictions.EXAMPLES.get(each.unit, predictions.EXAMPLE)
            answer = each.formula()
            if not isinstance(answer, str):
                assert read_amount(example, each.unit) != pytest.approx(answer, rel=0.02), id


class FrontEnd:
    """What `predict` shows where somebody is there: the widgets, without a browser."""

    def __init__(self, monkeypatch):
        import IPython.display

        self.shown = []
        monkeypatch.setattr(predictions, "front_end_present", lambda: True)
        monkeypatch.setattr(
            IPython.display, "display", lambda bundle, **_: self.shown.append(bundle)
        )

    def line(self):
        from ipywidgets.widgets import widget

        view = self.shown[-1]["application/vnd.jupyter.widget-view+json"]["model_id"]
        return widget._instances[view].children


def test_in_a_front_end_a_line_appears_and_keeps_what_was_typed(monkeypatch, capsys):
    front = FrontEnd(monkeypatch)
    predict("09.peak")
    line, answer = front.line()
    assert front.shown[-1]["text/plain"] == "Run this cell to type your prediction."
    assert "09.peak" in line.description, "a cell may ask for two"
    assert capsys.readouterr().out == "", "the formula's answer is not told before the measurement"
    line.value = "a lot"
    assert "not a number" in answer.value
    assert compare("09.peak", 33e6).predicted == pytest.approx(29.4e6, rel=0.01)
    line.value = "33"
    assert "Noted: 33 B" in answer.value and "no unit, so it was read in B" in answer.value
    line.value = "33 MB"
    assert "Noted" in answer.value and "no unit" not in answer.value
    found = compare("09.peak", 33e6)
    assert found.predicted == 33e6 and "your prediction" in capsys.readouterr().out
    predict("09.peak")  # the cell again
    assert front.line()[0].value == "33 MB"
    assert compare("09.peak", 33e6).predicted == 33e6
    front.line()[0].value = ""
    assert compare("09.peak", 33e6).predicted == pytest.approx(29.4e6, rel=0.01)


def test_the_formula_is_of_the_model_that_the_lesson_trains():
    from dlcourse.figures.accumulation import OURS

    assert GPTConfig() == OURS
    assert find_asked("09.nothing") is None and find_asked("99.peak") is None
