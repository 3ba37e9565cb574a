"""Goodput: the closed forms against a simulation and published figures."""

from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dlcourse import cli
from dlcourse.explorer import explore
from dlcourse.figures.goodput import (
    goodput_picture,
    show_goodput,
    show_intervals,
    show_published_failures,
)
from dlcourse.formulas.goodput import (
    WEIBULL_SHAPES,
    best_interval,
    checkpointed_goodput,
    daly_interval,
    first_order_goodput,
    job_goodput,
    job_mtbf,
    slow_node_odds,
    slowest_of,
    spares_availability,
    step_stretch,
    time_shares,
    young_interval,
)
from dlcourse.plan.failures import (
    best_simulated,
    failure_gaps,
    finish,
    goodput_by_interval,
    goodput_by_size,
    run_through,
    run_with_spares,
    slowest_step,
)
from dlcourse.training.goodput import foreseen, moments_of_failure, train_with_failures
from dlcourse.words import strings

DATA = Path(__file__).resolve().parents[1] / "data"
DALY = dict(checkpoint=5.0, restart=10.0)  # minutes: his figures 3 to 5


# -- checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("mtbf", "published"), [(24 * 60, "117"), (6 * 60, "57"), (15, "9.1")])
def test_daly_s_own_examples(mtbf, published):
    """Figures 3, 4 and 5 of his paper give the best interval in minutes, to these digits."""
    assert f"{daly_interval(5, mtbf):.{published.count('.')}f}" == published
    assert daly_interval(5, mtbf) == pytest.approx(best_interval(5, mtbf), rel=0.003)


@pytest.mark.parametrize("mtbf", [24 * 60, 6 * 60, 15, 5])
def test_goodput_is_that_of_the_simulation(mtbf):
    """200,000 failures: their mean gap is off by 0.2%, one standard deviation; 3 are allowed."""
    gaps = failure_gaps(mtbf)
    for interval in (best_interval(5, mtbf), young_interval(5, mtbf), 3 * mtbf):
        spent = run_through(gaps, interval=interval, **DALY)
        shares = time_shares(interval, mtbf=mtbf, **DALY)
        assert shares["useful"] == checkpointed_goodput(interval, mtbf=mtbf, **DALY)
        assert sum(shares.values()) == pytest.approx(1)
        for name, share in shares.items():
            assert getattr(spent, name) / spent.total == pytest.approx(share, abs=0.006), name


@pytest.mark.parametrize("mtbf", [24 * 60, 6 * 60, 15])
def test_the_best_interval_by_simulation_is_daly_s(mtbf):
    """Goodput is flat at its best: the interval is found within 10%, goodput within 0.1 points."""
    gaps, daly = failure_gaps(mtbf), daly_interval(5, mtbf)
    found = best_simulated(5, mtbf, restart=10)
    assert found == pytest.approx(daly, rel=0.1)
    at_both = goodput_by_interval(gaps, [found, daly], **DALY)
    assert 0 <= at_both[0] - at_both[1] < 0.001


def test_where_young_is_wrong():
    """Right to 0.1% of goodput where checkpoints are short; a fifth less where they take M."""
    costs = {}
    for mtbf in (5000, 10, 2.5):
        gaps = failure_gaps(mtbf)
        daly, young = (
            run_through(gaps, interval=f(5, mtbf), checkpoint=5).goodput
            for f in (best_interval, young_interval)
        )
        costs[mtbf] = 1 - young / daly
        estimate = first_order_goodput(young_interval(5, mtbf), checkpoint=5, mtbf=mtbf)
        assert estimate == pytest.approx(1 - math.sqrt(2 * 5 / mtbf))
        assert (abs(estimate - young) < 0.002) == (mtbf == 5000)
        assert (estimate <= 0) == (mtbf <= 10)  # it says nothing from delta = M / 2 on
    assert costs[5000] < 0.001 and 0.03 < costs[10] < 0.07 and costs[2.5] > 0.2
    # From there on M itself
    assert daly_interval(5, 2.5) == 2.5 and daly_interval(5, 10, order="first") == 10


def test_daly_s_first_order_is_young_less_the_checkpoint():
    assert daly_interval(5, 360, order="first") == young_interval(5, 360) - 5
    assert abs(daly_interval(5, 360) - best_interval(5, 360)) < abs(55 - best_interval(5, 360))
    with pytest.raises(ValueError, match="order='second'"):
        daly_interval(5, 360, order="second")


@pytest.mark.parametrize("shape", WEIBULL_SHAPES)
def test_bursts_of_failures_cost_less_than_the_formula_says(shape):
    """Failures that come together have less to destroy: the exponential formula is cautious."""
    gaps = failure_gaps(360, shape=shape)
    assert gaps.mean() == pytest.approx(360, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(
        math.sqrt(math.gamma(1 + 2 / shape) / math.gamma(1 + 1 / shape) ** 2 - 1), rel=0.02
    )
    interval = daly_interval(5, 360)
    real = run_through(gaps, interval=interval, **DALY).goodput
    formula = checkpointed_goodput(interval, mtbf=360, **DALY)
    assert 0.003 < real - formula < 0.02


def test_a_run_to_its_end_spends_what_an_endless_one_does():
    gaps = failure_gaps(360, seed=3)
    spent = finish(200 * 1440, gaps, interval=57, **DALY)
    assert spent.useful == 200 * 1440
    assert spent.goodput == pytest.approx(checkpointed_goodput(57, mtbf=360, **DALY), abs=0.02)
    # Without a failure: all segments but the last have a checkpoint
    alone = finish(100, np.array([1e9]), interval=30, checkpoint=5)
    assert (alone.total, alone.checkpoint, alone.lost, alone.failures) == (115, 15, 0, 0)
    # One failure at 50: one segment saved, 15 minutes lost, a restart
    once = finish(100, np.array([50, 1e9]), interval=30, checkpoint=5, restart=10)
    assert (once.total, once.lost, once.restart) == (50 + 10 + 70 + 10, 15, 10)


# -- nodes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spares", [0, 1, 2, 4])
def test_spare_nodes_are_those_of_the_simulation(spares):
    """20,000 failures of 65 nodes; repairs are lognormal, and only their mean counts."""
    nodes = dict(spares=spares, node_mtbf=1000, repair=20)
    job = dict(interval=3, checkpoint=0.2, restart=0.5)
    spent = run_with_spares(64, **nodes, **job)
    there = spares_availability(64, **nodes)
    assert 1 - spent.waiting / spent.total == pytest.approx(there, abs=0.02)
    shares = job_goodput(64, **nodes, **job)
    assert spent.goodput == pytest.approx(shares["useful"], abs=0.02)
    assert sum(shares.values()) == pytest.approx(1)


def test_failures_of_nodes_add_up():
    assert job_mtbf(6335, 2048) == 6335 / 2048
    shares = job_goodput(1, node_mtbf=360, interval=57, **DALY)
    assert shares["useful"] == checkpointed_goodput(57, mtbf=360, **DALY)
    spent = run_with_spares(8, spares=1, node_mtbf=800, repair=0, interval=10, checkpoint=1)
    assert spent.waiting == 0
    mean = spent.total / spent.failures
    assert mean == pytest.approx(job_mtbf(800, 8), rel=0.03)


@pytest.mark.parametrize("ranks", [1, 2, 8, 128, 2048])
def test_a_step_takes_as_long_as_its_slowest_rank(ranks):
    """400 steps: the mean of their slowest is off by 0.05 deviations at most, of which 3."""
    assert slowest_step(ranks, spread=0.05) == pytest.approx(
        step_stretch(ranks, spread=0.05), abs=0.05 * 0.15
    )


def test_waiting_for_the_slowest_comes_out_of_what_is_useful():
    """The same work takes as many times as long as the simulated step does."""
    job = dict(node_mtbf=6335, checkpoint=1 / 60, restart=1 / 6)
    even, uneven = (job_goodput(2048, **job, spread=spread) for spread in (0, 0.05))
    stretch = slowest_step(2048, spread=0.05)
    assert even["useful"] / uneven["useful"] == pytest.approx(stretch, abs=0.05 * 0.15)
    assert sum(uneven.values()) == pytest.approx(1) == sum(even.values())
    assert even["straggling"] == 0 < uneven["straggling"]


def test_slowest_of_two_is_known_exactly():
    assert slowest_of(1) == pytest.approx(0, abs=1e-9)
    assert slowest_of(2) == pytest.approx(1 / math.sqrt(math.pi), abs=1e-6)


def test_one_slow_machine_is_enough():
    rng = np.random.default_rng(0)
    slow = rng.random((20_000, 100)) < 0.01
    assert slow_node_odds(100, share=0.01) == pytest.approx(slow.any(axis=1).mean(), abs=0.01)
    assert slow_node_odds(100, share=0) == 0 and slow_node_odds(3, share=1) == 1


def test_goodput_by_size_falls_and_is_simulated():
    rows = goodput_by_size([8, 512, 16384], node_mtbf=6335, checkpoint=1 / 60, restart=1 / 6)
    assert [row["gpus"] for row in rows] == [8, 512, 16384]
    assert all(a["goodput"] > b["goodput"] for a, b in pairwise(rows))
    for row in rows:
        assert row["simulated"] == pytest.approx(row["goodput"], abs=0.01)


# -- pictures -------------------------------------------------------------------------------------

PUBLISHED = json.loads((DATA / "goodput_published.json").read_text(encoding="utf-8"))


def test_the_explorable_answers_at_once_and_says_what_the_formulas_do():
    started = time.process_time()
    sliders = explore(
        goodput_picture,
        node_mtbf=[1000, 2500, 6300],
        checkpoint=[10, 60, 300],
        restart=[3, 10],
        spares=[0, 1, 2, 4],
    )
    assert (time.process_time() - started) / len(sliders.pictures) < 0.1
    for lang in ("ko", "en"):
        strings.set_language(lang)
        picture = goodput_picture(6335, 60)
        shares = job_goodput(
            2048, node_mtbf=6335, checkpoint=1 / 60, restart=1 / 6, spares=62, repair=24
        )
        share = f"{100 * shares['useful']:.0f}%"
        assert f">{share}</text>" in picture.svg and share in picture.text.splitlines()[0]
        assert strings.t("goodput.explore.llama") in picture.svg


def test_stragglers_have_their_part_of_the_picture():
    strings.set_language("en")
    assert "waiting for the slowest 0.0%" in goodput_picture(6335, 60).text
    assert "slowest 0.0%" not in goodput_picture(6335, 60, spread=5).text.split("64:")[1]


def test_a_checkpoint_longer_than_its_interval_draws_nothing():
    with pytest.raises(ValueError, match="longer than interval"):
        goodput_picture(6335, 60, interval=0.5)


def test_the_figure_has_lines_points_and_what_was_published():
    curves = {
        name: goodput_by_size([8, 512, 16384], node_mtbf=mtbf, checkpoint=1 / 60, restart=1 / 6)
        for name, mtbf in (("a", 1000), ("b", 6335))
    }
    figure = show_goodput(curves, PUBLISHED)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    points = [trace for trace in figure.data if trace.mode == "markers"]
    assert [len(lines), len(points)] == [2, 2]
    for drawn, simulated, rows in zip(lines, points, curves.values(), strict=True):
        assert list(drawn.y) == [100 * row["goodput"] for row in rows]
        assert list(simulated.y) == [100 * row["simulated"] for row in rows]
    assert [list(t.x) for t in figure.data if t.mode == "markers+text"] == [[16384]]
    ends = [f"{100 * rows[-1]['goodput']:.0f}%" for rows in curves.values()]
    assert all(end in figure.layout.title.text for end in ends)


def test_the_tables_of_intervals_and_of_published_failures():
    rows = show_intervals(5, {mtbf: best_simulated(5, mtbf) for mtbf in (5000, 10, 2.5)}).rows
    assert [row[0] for row in rows] == ["1,000", "2", "0.500"]
    assert rows[0][5:] == ["95.5%", "95.6%", "95.6%"] and rows[2][5] == "-100.0%"
    llama = show_published_failures(PUBLISHED).rows[0]
    row = PUBLISHED["rows"][0]
    assert row["hours_between"] == round(24 * row["days"] / row["unexpected"], 2)
    assert (
        row["goodput_above"]
        < job_goodput(  # reached by quicker checkpoints and restarts
            2048, node_mtbf=6335, checkpoint=10 / 3600, restart=3 / 60
        )["useful"]
    )
    assert llama[3] == f"{2048 * row['hours_between']:,.0f}"


# -- runs of a few steps; real ranks: test_goodput_ranks.py ----------------------------------------


def test_steps_of_many_imagined_runs_are_those_of_the_formula():
    """3,000 runs of 40 steps: their mean length is off by 0.24%, one standard deviation."""
    lengths = [
        foreseen(moments_of_failure(12, seed=seed, count=60), steps=40, interval=5)[2]
        for seed in range(3000)
    ]
    formula = 40 / checkpointed_goodput(5, checkpoint=0, mtbf=12)
    assert np.mean(lengths) == pytest.approx(formula, rel=0.01)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(steps=0), "steps=0"),
        (dict(interval=2.5), "interval=2.5"),
        (dict(interval=25), "interval=25 is longer than the run, work=24"),
        (dict(mtbf_steps=-1), "mtbf=-1"),
        (dict(mtbf_steps=1), "7.5% of the steps would count"),
    ],
)
def test_a_run_that_would_not_end_is_refused_before_it_starts(given, said):
    with pytest.raises(ValueError) as refused:
        train_with_failures(None, **given)
    assert said in str(refused.value)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: job_goodput(0, node_mtbf=1, checkpoint=1), "nodes=0"),
        (lambda: job_goodput(2.5, node_mtbf=1, checkpoint=1), "nodes=2.5"),
        (lambda: job_goodput(8, node_mtbf=-5, checkpoint=1), "node_mtbf=-5: give a time above 0"),
        (lambda: job_mtbf(math.nan, 8), "node_mtbf=nan"),
        (lambda: young_interval(-1, 10), "checkpoint=-1: give a time of 0 or more"),
        (
            lambda: job_goodput(8, node_mtbf=1e4, checkpoint=60, interval=30),
            "checkpoint=60 is longer than interval=30",
        ),
        (
            lambda: finish(10, failure_gaps(5), interval=20, checkpoint=1),
            "interval=20 is longer than the run, work=10",
        ),
        (lambda: finish(1e9, failure_gaps(5, count=9), interval=2, checkpoint=1), "is not done"),
        (lambda: spares_availability(8, spares=-1, node_mtbf=9, repair=1), "spares=-1"),
        (lambda: failure_gaps(5, shape=0), "shape=0"),
        (lambda: failure_gaps(5, count=0), "count=0"),
        (lambda: slowest_of(0), "ranks=0"),
        (lambda: step_stretch(8, spread=2), "spread=2"),
        (lambda: slow_node_odds(8, share=2), "share=2"),
        (lambda: goodput_by_size([12], node_mtbf=9, checkpoint=1, restart=1), "12 GPUs"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(call, said):
    with pytest.raises(ValueError) as refused:
        call()
    assert said in str(refused.value)


# -- the command ----------------------------------------------------------------------------------

LLAMA = ["plan", "--lang", "en", "--model", "llama-3.2-1b", "--gpus", "16", "--tokens", "1e12"]


def said_by(capsys, *more: str) -> dict:
    assert cli.main([*LLAMA, "--json", *more]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_plan_s_days_with_failures(capsys):
    plain = said_by(capsys)["simplest"]
    assert "failures" not in plain
    more = said_by(capsys, "--mtbf-hours", "200", "--interval-minutes", "60")["simplest"]
    found = more["failures"]
    want = job_goodput(2, node_mtbf=200, checkpoint=1 / 60, interval=1, restart=1 / 6)
    assert found["goodput"] == pytest.approx(want["useful"])
    assert found["job_mtbf_hours"] == 100 and found["interval_minutes"] == 60
    assert found["days"] == pytest.approx(plain["days"] / want["useful"])
    assert found["gpu_hours"] == pytest.approx(plain["gpu_hours"] / want["useful"])
    # A spare node is paid for
    spare = said_by(capsys, "--mtbf-hours", "200", "--spares", "1")["simplest"]["failures"]
    assert spare["gpu_hours"] == pytest.approx(24 * spare["days"] * 24)
    assert 0 < spare["waiting"] < 0.05


def test_the_plan_says_it_in_both_languages(capsys):
    for lang, words in (("en", "the job every 100 h"), ("ko", "작업은 100시간마다")):
        assert cli.main([*LLAMA, "--lang", lang, "--mtbf-hours", "200"]) == 0
        assert words in capsys.readouterr().out
        layout = ["--layout", "data=16,stage=1,micro_batch=4"]
        assert cli.main([*LLAMA, "--lang", lang, "--mtbf-hours", "200", *layout]) == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--mtbf-hours -3", "mtbf_hours=-3.0: give more than 0"),
        (
            "--mtbf-hours 200 --interval-minutes 0.5",
            "interval_minutes=0.5: a checkpoint of 60 seconds takes longer",
        ),
        ("--mtbf-hours 200 --interval-minutes 9e9", "is longer than the run"),
        ("--mtbf-hours 200 --spares -1", "spares=-1"),
        ("--mtbf-hours 1e-4", "would never end"),
        ("--spares 3", "spares without mtbf_hours"),
    ],
)
def test_the_command_refuses_in_words(capsys, more, said):
    assert cli.main([*LLAMA, *more.split()]) == 2
    assert said in capsys.readouterr().err
