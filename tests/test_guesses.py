"""A learner's predictions are kept for the end of the course, and never stop a lesson."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dlcourse import show_guesses
from dlcourse.cli import main
from dlcourse.course import catalog, guesses, predictions
from dlcourse.course.guesses import keep_guess, keep_measured, path_of, read_guesses
from dlcourse.course.predictions import compare, predict
from dlcourse.figures.held import Said
from dlcourse.figures.tables import Table
from dlcourse.words.strings import set_language

ROOT = catalog.own_root()


@pytest.fixture(autouse=True)
def learner(tmp_path, monkeypatch) -> Path:
    """The learner's own folder, which is not there yet."""
    set_language("en")
    monkeypatch.setenv("DLCOURSE_LEARNER", str(tmp_path / "learner"))
    monkeypatch.setattr(predictions, "_predictions", {})
    words = catalog.words_path(ROOT, "09_accumulation")
    monkeypatch.setenv("DLCOURSE_WORDS", str(words))
    return tmp_path / "learner"


@pytest.fixture
def somebody(monkeypatch):
    """A person types: what `predict` shows is given back as its line and its answer."""
    import IPython.display
    from ipywidgets.widgets import widget

    shown = []
    monkeypatch.setattr(predictions, "front_end_present", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda bundle, **_: shown.append(bundle))

    def line():
        view = shown[-1]["application/vnd.jupyter.widget-view+json"]["model_id"]
        return widget._instances[view].children

    return line


def test_what_is_typed_is_kept_and_meets_its_measurement(somebody):
    predict("09.peak")
    line, answer = somebody()
    line.value = "a lot"
    assert read_guesses() == []
    line.value = "60 MB"
    line.value = "66 MB"  # thought better of it, before the measurement
    (kept,) = read_guesses()
    assert (kept.id, kept.guess, kept.unit, kept.measured) == ("09.peak", 66e6, "bytes", None)
    assert kept.formula == pytest.approx(29.4e6, rel=0.01) and "kept" not in answer.value
    compare("09.peak", 33e6)
    (kept,) = read_guesses()
    assert kept.measured == 33e6 and kept.ratio == 2
    line.value = "33 MB"  # the answer is known by now: it does not count
    compare("09.peak", 34e6)
    assert read_guesses() == [kept]


def test_a_guess_in_the_cell_is_kept_too(somebody):
    predict("09.no_sync", 1)
    compare("09.no_sync", [4, 4])
    (kept,) = read_guesses()
    assert (kept.guess, kept.measured, kept.ratio, kept.formula_ratio) == (1, 4, 0.25, 1)


def test_nothing_is_written_where_nobody_is(learner):
    predict("09.no_sync", 1)
    predict("09.peak")
    compare("09.no_sync", 4)
    compare("09.peak", 33e6)
    assert not learner.exists()
    keep_guess("09.peak", 1, 2, "bytes")  # of a person who ran half of the lesson
    predict("09.peak", 3e6)
    compare("09.peak", 33e6)
    assert [(kept.guess, kept.measured) for kept in read_guesses()] == [(1, None)]


def test_without_a_guess_a_sentence_says_so(capsys):
    assert isinstance(show_guesses(), Said) and "no predictions of yours yet" in repr(
        show_guesses()
    )
    assert main(["guesses", "--lang", "ko"]) == 0
    assert "아직 적은 예측이 없습니다" in capsys.readouterr().out
    set_language("ko")
    assert "아직 적은 예측이 없습니다" in repr(show_guesses())


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_figure_and_table_show_the_ratios(lang, capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    keep_guess("09.peak", 66e6, 33e6, "bytes")
    keep_measured("09.peak", 33e6)
    keep_guess("09.no_sync", 1, 4, "×")
    keep_measured("09.no_sync", 4)
    keep_guess("01.name", "ring", "tree", "")
    keep_measured("01.name", "tree")
    keep_guess("09.means", 3.0, 3.0, "")
    set_language(lang)
    table = show_guesses()
    (figure,) = shown
    assert [row[0][:9] for row in table.rows] == [
        "01.name (",
        "09.means ",
        "09.no_syn",
        "09.peak (",
    ]
    ratios = [row[3] for row in table.rows]
    assert ratios[1:] == ["", "0.250×", "2×"] and ratios[0] in ("다름", "different")
    assert list(figure.data[0].x) == [0.25, 2] and list(figure.data[1].x) == [1, 1]
    assert list(figure.data[0].y) == ["09.no_sync", "09.peak"]
    title = figure.layout.title.text
    assert ("3배 차이" if lang == "ko" else "by a factor of 3") in title, "the median of 4 and 2"
    assert main(["guesses", "--lang", lang]) == 0
    printed = capsys.readouterr().out
    assert title in printed and "62.9 MiB" in printed
    assert main(["guesses", "--json", "--lang", lang]) == 0
    record = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert record["09.peak"]["ratio"] == 2 and record["09.means"]["measured"] is None


def test_words_alone_are_a_table_without_a_figure():
    keep_guess("01.name", "ring", "tree", "")
    assert isinstance(show_guesses(), Table) and "no measured number" in repr(show_guesses())


BROKEN = [
    b"\xff\xfe\x00 not text\n",
    b"[1, 2]\n",
    b'{"id": "09.peak"}\n',
    b'{"id": 3, "guess": 1, "formula": 2, "unit": "", "when": 0}\n',
    b'{"id": "09.peak", "guess": [1], "formula": 2, "unit": "", "when": 0}\n',
    b'{"id": "09.nothing", "measured": 3}\n',
    b'{"id": "09.peak", "guess": 1, "form',  # cut off: no end of line
]


def test_a_broken_line_costs_that_line(somebody):
    keep_guess("09.means", 4, 3, "")
    with path_of().open("ab") as file:
        file.write(b"".join(BROKEN))
    assert [kept.id for kept in read_guesses()] == ["09.means"]
    predict("09.no_sync", 2)
    compare("09.no_sync", 4)
    assert [kept.id for kept in read_guesses()] == ["09.means", "09.no_sync"]


def test_a_file_that_cannot_be_written_is_said_and_stops_nothing(learner, somebody, capsys):
    learner.write_text("a file where the folder should be")
    predict("09.peak")
    line, answer = somebody()
    line.value = "66 MB"
    assert "this file cannot be written" in answer.value and "Noted" in answer.value
    assert compare("09.peak", 33e6).ratio == 0.5
    predict("09.no_sync", 2)
    assert str(path_of()) in capsys.readouterr().out
    assert isinstance(show_guesses(), Said)


def test_without_a_home_folder_a_guess_is_not_kept_and_that_is_said(somebody, monkeypatch, capsys):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DLCOURSE_LEARNER")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(guesses.Path, "home", homeless)
    predict("09.no_sync", 2)
    assert "cannot be written: guesses.jsonl" in capsys.readouterr().out
    assert compare("09.no_sync", 4).ratio == 2


def test_a_file_that_is_a_folder_stops_nothing(somebody):
    path_of().mkdir(parents=True)
    predict("09.no_sync", 2)
    assert compare("09.no_sync", 4).ratio == 2 and read_guesses() == []


def test_two_notebooks_write_at_once():
    """Every line of every process is there, and whole."""
    code = (
        "import sys; from dlcourse.course.guesses import keep_guess\n"
        "for n in range(200): keep_guess(f'{sys.argv[1]}.{n}', n, 'x' * 500, '')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT) for name in "abc"]
    assert [process.wait(120) for process in started] == [0, 0, 0]
    assert len(read_guesses()) == 600


def test_the_file_is_where_a_system_keeps_a_persons_data(monkeypatch, tmp_path):
    monkeypatch.delenv("DLCOURSE_LEARNER")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(guesses.sys, "platform", "linux")
    assert path_of() == tmp_path / ".local/share/dlcourse/guesses.jsonl"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert path_of() == tmp_path / "data/dlcourse/guesses.jsonl"
    monkeypatch.setattr(guesses.sys, "platform", "darwin")
    assert path_of().is_relative_to(tmp_path / "Library")
