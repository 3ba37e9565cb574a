"""Tasks for whoever plans: what a plan comes to, and the cheapest that there is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlcourse.plan.layouts import Layout
from dlcourse.plan.planner import plan
from dlcourse.plan.scenario import Scenario, cheapest, score, show_plan
from dlcourse.words.strings import set_language

TASK = Scenario(
    name="task",
    model="llama-3.2-1b",
    gpu="rtx-4090",
    most=16,
    tokens=2e10,
    batch_tokens=524_288,
    days=4,
    dollars=300,
    price=0.5,
)


@pytest.fixture(autouse=True)
def english():
    set_language("en")


def test_days_and_dollars_are_the_planners_with_failures():
    answer = plan(TASK.job(8))
    found = score(TASK, 8, answer.layouts[answer.fastest])
    numbers = answer.numbers(answer.fastest, tokens=TASK.tokens)
    assert found.days == pytest.approx(numbers["days"] / 0.9)
    assert found.dollars == pytest.approx(numbers["gpu_hours"] / 0.9 * 0.5)
    assert found.memory == numbers["memory"] and found.faults == []


def test_each_fault_is_named_with_its_numbers():
    whole = Layout(data=8, micro_batch=4)
    kinds = [name for name, _ in score(TASK, 8, whole).faults]
    assert kinds == ["memory_only"]
    late = replace(TASK, days=0.5, dollars=1)
    small = plan(late.job(8))
    faults = dict(score(late, 8, small.layouts[small.fastest]).faults)
    found = score(late, 8, small.layouts[small.fastest])
    assert float(faults["late"]["over"]) == pytest.approx(found.days - 0.5, abs=0.05)
    assert float(faults["dear"]["over"]) == pytest.approx(found.dollars - 1, abs=0.5)


def test_the_fullest_stage_is_named():
    large = replace(TASK, model="llama-3-70b", gpu="h100", batch_tokens=1_048_576)
    layout = Layout(tensor=4, pipeline=4, stage=0)
    ((kind, values), *_) = score(large, 16, layout).faults
    assert kind in ("memory_first", "memory_last")
    assert float(values["held"].replace(",", "")) > float(values["limit"])


def test_the_cheapest_is_in_time_and_nothing_that_is_costs_less():
    best = cheapest(TASK)
    assert best is not None and best.days <= TASK.days
    for gpus in TASK.sizes():
        answer = plan(TASK.job(gpus))
        other = score(TASK, gpus, answer.layouts[answer.fastest])
        assert other.days > TASK.days or other.dollars >= best.dollars
    assert cheapest(replace(TASK, days=0.01)) is None


def test_sizes_are_parts_of_a_node_then_whole_nodes():
    assert TASK.sizes() == [1, 2, 4, 8, 12, 16]  # nodes of 4
    assert replace(TASK, gpu="h100", most=24).sizes() == [1, 2, 4, 8, 16, 24]
    assert replace(TASK, gpu="h100", most=3).sizes() == [1, 2]


def test_a_plan_is_shown_beside_its_limits():
    text = repr(show_plan(replace(TASK, dollars=1), (8, Layout(data=8, stage=1))))
    assert "cost (dollars)" in text and text.count("too much") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (dict(days=0), "days=0: give a positive number"),
        (dict(useful=1.1), "useful=1.1: a share is at most 1"),
        (dict(price=-1), "price=-1"),
    ],
)
def test_a_task_that_is_none_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        replace(TASK, **change)


def test_a_plan_that_is_none_is_refused():
    with pytest.raises(ValueError, match="gpus=32: there are 16"):
        TASK.job(32)
    with pytest.raises(ValueError, match=r"a plan is \(number of GPUs, Layout\)"):
        show_plan(TASK, 8)
    with pytest.raises(ValueError, match="the cluster has 8"):
        score(TASK, 8, Layout(data=4))
