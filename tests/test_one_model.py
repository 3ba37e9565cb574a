"""Lesson 00's own pictures and tables, and that its first exercise's answer is what ranks do."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from dlcourse.course import catalog
from dlcourse.course.exercises import find_exercise
from dlcourse.figures.one_model import (
    GRADIENT,
    bytes_of_a_rank,
    show_memory,
    show_one_model,
    show_paths,
    work_and_bytes,
)
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.ranks import Ranks
from dlcourse.words.strings import set_language
from dlcourse.words.units import human_bytes

ROOT = catalog.own_root()


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_every_position_of_the_slider_says_what_the_formulas_say(lang):
    set_language(lang)
    for ranks in (1, 2, 4, 8, 16, 32, 64):
        began = time.process_time()
        picture = work_and_bytes(ranks)
        assert time.process_time() - began < 0.1
        sent = wire_bytes("all_reduce", GRADIENT, ranks)
        assert f"{64 // ranks}" in picture.text and human_bytes(sent) in picture.text
        root = ElementTree.fromstring(picture.svg)
        rects = root.iter("{http://www.w3.org/2000/svg}rect")
        work, wire = (float(rect.get("width", 0)) for rect in rects)
        assert wire / work == pytest.approx(ranks * sent / GRADIENT, rel=0.05)


def test_one_model_is_said_only_of_one():
    of_rank = {"one": 2.5, "ours": 2.5, "ddp": 2.5000002}
    set_language("en")
    assert "equal to one process" in repr(show_one_model([of_rank] * 4))
    with pytest.raises(AssertionError, match="not equal to one process"):
        show_one_model([of_rank, of_rank | {"ours": 2.6}])


def test_ranks_that_drift_are_not_drawn_as_one_line():
    alone = [[0.0, 1.0], [0.0, 2.0]]
    assert "1, 2;" in str(show_paths(alone, [[0.0, 1.5]] * 2).to_plotly_json()["layout"]["title"])
    with pytest.raises(AssertionError, match="drifted apart"):
        show_paths(alone, alone)


def test_bytes_are_the_systems_where_it_has_a_count():
    run = SimpleNamespace(comm=SimpleNamespace(ranks=[{"wire_bytes": 6_000_000}]))
    assert bytes_of_a_rank(run, [[6_000_100], [6_000_200]]) == 6_000_200
    assert bytes_of_a_rank(run, [[0], [0]]) == 6_000_000  # macOS; GPUs
    with pytest.raises(AssertionError):
        bytes_of_a_rank(run, [[12_000_000]])


def test_memory_that_is_not_shared_is_no_figure():
    with pytest.raises(AssertionError, match="share nothing"):
        show_memory([100, 90], 200)


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_the_answer_of_the_first_exercise_is_what_four_ranks_do(lang, tmp_path):
    text = (catalog.room(ROOT, "00_start") / "lesson.py").read_text(encoding="utf-8")
    shown = re.findall(r"# ```python\n(.*?)# ```", text, re.S)[catalog.LANGUAGES.index(lang)]
    code = "\n".join(line.removeprefix("# ") for line in shown.splitlines())
    scope: dict = {}
    exec(find_exercise("00.be_the_ranks").solution, scope)
    with Ranks(4, default=False) as ranks:
        ranks.cell(code, record=False)
        assert [float(x) for x in ranks["x"]] == scope["x_in_ranks"]()
