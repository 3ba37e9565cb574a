"""Lesson 15: its figures say what was measured or fail, and its texts say what the planner says."""

from __future__ import annotations

import math
import re
import sys
from dataclasses import replace

import cloudpickle
import pytest

from dlcourse.course.helpers import lesson
from dlcourse.figures.choosing import (
    OURS,
    batch_of_ours,
    check_ranks,
    first_stage_bytes,
    minutes_between_checkpoints,
    show_equal,
    show_grid,
    show_thousands,
    tensor_over_pipeline,
)
from dlcourse.formulas.mesh import mesh_bytes
from dlcourse.plan.answer_tables import show_changes, show_choice, show_published, show_rivals
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.failures import best_simulated
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.own_mesh import planned_here, planned_memory, planned_there
from dlcourse.plan.planner import plan
from dlcourse.ranks import Ranks
from dlcourse.words.strings import set_language

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SIDES = {"data": 2, "pipeline": 2, "tensor": 2}


@pytest.fixture(autouse=True)
def english():
    lesson(lang="en", name="15_choosing")


@pytest.fixture(scope="module")
def answer():
    """The job of the lesson."""
    return plan(
        Job(
            shape=published_model("llama-3-70b"),
            cluster=cluster_of("h100", gpus=128),
            batch_tokens=4_194_304,
            sequence=8192,
        )
    )


def test_the_texts_say_what_the_planner_says(answer):
    simplest = answer.layouts[answer.simplest]
    assert len(answer.layouts) > 20_000, "tens of thousands of ways"
    assert simplest.pipeline == 1, "the simplest has no pipeline"
    assert answer.simplest != answer.fastest, "two columns that differ"
    best = answer.best_of_families()
    for name, most in (("ddp", "optimizer_state"), ("zero2", "parameters")):
        reason, facts = answer.why(best[name])
        assert (reason, facts["most"]) == ("memory", most)
    total = answer.seconds["total"]
    assert answer.layouts[best["both"]].data > 1 and answer.fits[best["both"]]
    assert total[best["zero3"]] > 1.05 * total[answer.fastest]
    assert answer.fits[best["zero3"]] and answer.layouts[best["zero3"]].recompute == "full"


def test_the_answer_is_shown(answer):
    choice, rivals = repr(show_choice(answer)), repr(show_rivals(answer))
    assert f"{len(answer.layouts):,}" in choice and "exposed communication" in choice
    assert "GB too many" in rivals and "slower" in rivals
    best, total = answer.best_of_families(), answer.seconds["total"]
    least = total[answer.fits].min()
    both, tensor = (f"{100 * (total[best[way]] / least - 1):.1f}%" for way in ("both", "tensor"))
    assert f"tensor + pipeline (3D) by {both}, tensor alone by {tensor}" in rivals
    assert "more node" in repr(show_changes(answer))
    published = repr(show_published(["llama3", "qwen3"]))
    assert "16,384 GPUs" in published and "Llama 3 Herd" in published


def test_published_runs_are_named_in_the_readers_language():
    set_language("ko")
    names = ("llama3", "qwen3", "sc21", "megatron_core", "llm_foundry", "korthikanti")
    rows = show_published(names).parts[0].rows
    runs, numbers = [row[1] for row in rows], [row[2] + row[3] for row in rows]
    assert not re.findall("GPUs|chunks|context|full|selective", " ".join(runs)), runs
    assert "TP2 EP32 PP8, 청크 4개" in runs and "22B, 전체 재계산" in runs
    assert not [text for text in numbers if "e+" in text]


def test_a_layout_that_does_not_fit_has_no_gap(answer):
    nowhere = replace(answer, fits=answer.fits & (answer.layouts.pipeline == 1))
    assert "slower" in repr(show_rivals(nowhere)) and "(3D)" not in repr(show_rivals(nowhere))


@pytest.mark.parametrize("num_ranks", [1, 3, 6])
def test_copies_that_do_not_come_out_even_are_refused_before_any_rank_starts(num_ranks):
    says = rf"num_ranks={num_ranks}: .*pipeline=2 x tensor=2 ranks; give a multiple of 4, such as"
    with pytest.raises(ValueError, match=says):
        check_ranks(num_ranks)


def test_the_mesh_that_the_lesson_has_refused_is_not_the_one_it_runs_on():
    for num_ranks in (4, 8, 16):
        check_ranks(num_ranks)
    with pytest.raises(ValueError, match=r"num_ranks=12: .*give another multiple of 4, such as 8"):
        check_ranks(12)


def record_of(**changes: float) -> dict:
    """What ``scale`` would give for a rank that is as planned, with changes."""
    job = SIDES | batch_of_ours() | {"model": "gpt2-large", "block": 1024}
    planned = planned_there({"job": job}) | changes
    from dlcourse.formulas.sizes import MODELS

    sizes = {name: job[name] for name in ("micro_batch", "micro_batches", "block")}
    sent = mesh_bytes(MODELS["gpt2-large"], **SIDES, **sizes)
    comm = [
        {"group": side, "op": "send", "bytes": nbytes, "group_size": 2}
        for side, nbytes in sent.items()
    ]
    states = {name: planned[name] for name in ("parameters", "gradients", "optimizer_state")}
    peaks = {"activations": planned["activations"]}
    return {
        "job": job,
        "comm": comm,
        "sides": {side: side for side in sent},
        "memory": {"end": states, "peaks": peaks, "at_peak": peaks},
    }


def test_a_rank_is_shown_beside_the_plan_and_a_difference_is_refused():
    record = record_of()
    planned = planned_there(record)
    assert "allowed 5%" in repr(show_thousands(record, planned))
    with pytest.raises(AssertionError, match="activations are those of the planner"):
        show_thousands(record_of(activations=1.1 * planned["activations"]), planned)
    with pytest.raises(AssertionError, match="optimizer state"):
        show_thousands(record_of(parameters=1.01 * planned["parameters"]), planned)
    record["comm"].append(record["comm"][0])
    with pytest.raises(AssertionError, match="the bytes of a step"):
        show_thousands(record, planned)


def test_what_differs_from_one_process_is_refused():
    apart = {"loss": 1e-7, "gradients": 1e-7, "steps": 1e-6}
    assert "one process" in repr(show_equal(apart))
    with pytest.raises(AssertionError, match="loss and gradients"):
        show_equal(apart | {"gradients": 1e-3})
    with pytest.raises(AssertionError, match="five steps"):
        show_equal(apart | {"steps": 1e-2})


def test_the_grid_says_what_each_rank_has():
    places = [(d, p, tensor) for d in range(2) for p in range(2) for tensor in range(2)]
    rows = show_grid(places, SIDES).rows
    assert rows[0] == ["0", "0", "0", "0", "0-1", "0-1", "0-7"]
    assert rows[7] == ["7", "1", "1", "1", "2-3", "2-3", "8-15"]


def test_what_is_asked_has_these_answers():
    assert tensor_over_pipeline() == pytest.approx(8, rel=1e-4)
    assert first_stage_bytes() == 1_275_494_400  # test_scale.py has it from a fake rank
    young, found = minutes_between_checkpoints(), best_simulated(1.0, 60 * 3.09)
    assert young == pytest.approx(found, rel=0.15)  # the curve is flat around the best


def composed() -> dict[str, float]:
    """As the lesson composes it, in two ranks: how far from one process, and after a change."""
    import torch
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.parallel.mesh import MeshParallel, make_mesh
    from dlcourse.training.mesh_parity import apart_from, largest

    mesh = make_mesh(pipeline=2)
    model, alone = (
        MeshParallel(GPT(OURS, seed=dist.get_rank()), mesh, num_micro_batches=2),
        GPT(OURS),
    )
    batch = Corpus(limit=9999).batch(0, micro_batch=4, block=16)
    model.step(*batch)
    alone(*batch).backward()
    found = {"gradients": apart_from(model.layers, alone, mesh, lambda p: p.grad)}
    with torch.no_grad():
        next(model.layers.parameters()).add_(dist.get_rank())  # in the last stage alone
    found["changed"] = apart_from(model.layers, alone, mesh, lambda p: p.detach())
    found["largest"] = largest(dist.get_rank())
    with torch.no_grad():
        next(model.layers.parameters())[-1] *= float("nan") if dist.get_rank() else 1.0
    found["diverged"] = apart_from(model.layers, alone, mesh, lambda p: p.detach())
    try:
        apart_from(torch.nn.Linear(2, 2), alone, mesh, lambda p: p)
    except ValueError as error:
        found["refused"] = "no such parameter" in str(error)
    return found


def test_ranks_are_compared_with_one_process():
    with Ranks(2, default=False) as pool:
        for found in pool.run(composed):
            assert found["gradients"] < 1e-6
            assert found["changed"] == pytest.approx(1) and found["largest"] == 1
            assert found["diverged"] == math.inf  # Gloo's MAX passes over NaN of a later rank
            assert found["refused"]


def test_the_planner_knows_the_lessons_rank():
    sides = dict(pipeline=2, tensor=2, data=2)
    assert planned_here(sides) == planned_memory(OURS, **sides, **batch_of_ours())
    with pytest.raises(ValueError, match="whole"):
        planned_memory(OURS, **sides, micro_batch=0, micro_batches=4, block=64)
