"""Figures and predictions of lesson 07: what they compute, and what they say of it."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

import pytest

from dlcourse.course.predictions import find_asked
from dlcourse.figures import moe as figures
from dlcourse.figures.moe import (
    dropped_share,
    dropping,
    memory_of_experts,
    show_choices,
    show_contracts,
    show_short,
)
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.model_shape import active_numbers, total_numbers
from dlcourse.training.architecture_record import load
from dlcourse.words.strings import set_language

EVEN = [[1 / 8] * 8]


@pytest.fixture(autouse=True)
def english():
    set_language("en")


def test_mixtral_has_the_published_numbers_of_parameters():
    text = memory_of_experts(experts=8, top_k=2).text
    assert "46.7 billion parameters" in text and "uses 12.9 billion" in text
    assert "747 GB" in text  # 16 bytes each
    assert "refuses" in memory_of_experts(experts=2, top_k=4).text
    shape = published_model("mixtral-8x7b")
    assert figures._mixtral(8, 8) == total_numbers(shape)
    assert figures._mixtral(4, 4) == total_numbers(replace(shape, experts=4))  # a smaller router
    assert figures._mixtral(8, 2) == active_numbers(shape)


@pytest.mark.parametrize(
    ("shares", "factor", "dropped"),
    [
        (EVEN, 1, 0),
        (EVEN, 0.5, 50),
        ([[0.5, 0.5] + [0] * 6], 1, 75),  # two experts of eight: each keeps its eighth
        ([[0.5, 0.5] + [0] * 6, *EVEN], 1, 37.5),
        ([[0.5, 0.5] + [0] * 6], 4, 0),
    ],
)
def test_what_is_dropped_is_what_is_over_the_limit(shares, factor, dropped):
    assert dropped_share(shares, factor) == pytest.approx(dropped)


def test_places_that_stay_empty_are_told():
    text = dropping({"none": [[0.5, 0.5] + [0] * 6], "loss": EVEN, "bias": EVEN})(2).text
    assert "50.0% dropped without balance" in text
    assert "no balance: 50.0% dropped, 75% of places empty" in text
    assert "balance loss: 0.0% dropped, 50% of places empty" in text


def test_the_formula_of_dropping_by_chance_is_that_of_a_simulation():
    rng = random.Random(0)
    copies, experts = 3 * 8 * 64 * 2, 8

    def dropped() -> float:
        counts = [0] * experts
        for _ in range(copies):
            counts[rng.randrange(experts)] += 1
        return 100 * sum(max(0, c - copies / experts) for c in counts) / copies

    # The mean of 60 batches is off by 0.06 (one standard error); six times that is allowed
    assert fmean(dropped() for _ in range(60)) == pytest.approx(
        find_asked("07.dropped").formula(), abs=0.36
    )


def test_recorded_routers_say_their_own_day_and_how_many_seeds():
    table = figures.show_scores()
    run = load()["runs"]["router/none/0"]
    assert run["date"] in table.caption and run["machine"] in table.caption
    assert [row[-1] for row in table.rows] == ["3", "3", "1", "1"]


@pytest.mark.parametrize(("lang", "words"), [("en", "used by a token"), ("ko", "토큰 하나가")])
def test_the_size_of_v3_is_told_in_the_readers_language(lang, words):
    set_language(lang)
    said = repr(figures.show_v3())
    assert words in said and "10.7 TB" in said and "5.5%" in said


def test_a_letter_of_three_bytes_is_three_tokens():
    rows = show_choices("i 손", [[0, 1]] * 5, [[0.75, 0.25]] * 5).rows
    assert [row[0] for row in rows] == ["i", "␣", "손 1/3", "손 2/3", "손 3/3"]
    assert rows[0][1:] == ["0  (75%)", "1  (25%)"]


def row(difference, spread):
    numbers = {"loss": 2.0 + difference, "spread": 0.01}
    return numbers | {"difference": difference, "difference_spread": spread}


FOUND = {
    "active": {"dense": row(0, 0), "moe": row(-0.02, 0.01), "sparse": row(-0.01, 0.03)},
    "total": {"dense_total": row(0, 0), "moe": row(0.05, 0.02)},
}


def test_a_difference_within_the_seeds_is_a_draw(monkeypatch):
    run = {"steps": 9, "seeds": [0, 1, 2], "machine": "m", "date": "d"}
    monkeypatch.setattr(figures, "recorded_run", lambda: run)
    monkeypatch.setattr(figures, "contracts", lambda run: FOUND)
    verdicts = [row[-1] for row in show_contracts().rows]
    assert verdicts == ["", "lower", "within the seeds", "", "higher"]


def test_costs_are_told_in_each_coin_and_sorted_by_loss(monkeypatch):
    names = ("dense", "moe", "sparse", "dense_total")
    sizes = {name: {"parameters": 100 + i} for i, name in enumerate(names)}
    run = {"sizes": sizes, "seconds": {name: 1 + i for i, name in enumerate(names)}}
    monkeypatch.setattr(figures, "recorded_run", lambda: run)
    monkeypatch.setattr(figures, "contracts", lambda run: FOUND)
    _flops, parameters, _memory, seconds = figures.costs()
    assert figures.loss_and_cost(seconds).text.splitlines() == [
        "Lowest loss: sparse, at 3.00 times the dense model in time of a step (sorted by loss)",
        "sparse: 3.00 ×, loss 1.990",
        "dense: 1.00 ×, loss 2.000",
        "large dense: 4.00 ×, loss 2.000",
        "MoE: 2.00 ×, loss 2.050",
    ]
    assert "MoE: 1.01 ×" in figures.loss_and_cost(parameters).text


@pytest.mark.parametrize("content", [None, '{"runs": {}, "steps": 1, "seconds": {"moe": 1}}'])
def test_without_a_whole_record_the_tables_say_how_to_make_it(content, tmp_path, monkeypatch):
    path = tmp_path / "architectures.json"
    if content:
        path.write_text(content)
    monkeypatch.setattr(figures, "load", lambda: load(path))
    assert figures.recorded_run() is None
    assert "dlcourse bench architectures" in repr(show_contracts())
    assert "dlcourse bench architectures" in figures.loss_and_cost(figures.costs()[0]).text


@pytest.mark.parametrize(
    ("seeds", "said"),
    [((0.0, 0.001), "A hint"), ((0.0, 0.2), "decides nothing")],
)
def test_a_short_run_says_how_sure_it_is(seeds, said):
    def results(loss):
        return [{"looks": [{"loss": {"mean": loss + seed}}]} for seed in seeds]

    names = {"dense": 2.1, "loss": 2.0, "dense_total": 2.05}
    assert said in repr(show_short({name: results(loss) for name, loss in names.items()}))
