"""The planner against one rank of thousands, and its calibration on this machine's real ranks."""

from __future__ import annotations

import json

import pytest

from dlcourse import cli
from dlcourse.formulas.mesh import mesh_bytes
from dlcourse.formulas.sizes import MODELS
from dlcourse.formulas.states import CATEGORIES
from dlcourse.measure.sides import sent_by_side
from dlcourse.plan.calibrate import read_profile
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import memory
from dlcourse.plan.layouts import Layout, Layouts
from dlcourse.plan.own_mesh import planned_memory
from dlcourse.plan.scale import scale


@pytest.mark.parametrize(
    "sides",
    [
        dict(tensor=4, stage=3),
        # The course's pipelines keep the embedding whole on each tensor rank
        dict(tensor=2, pipeline=4, micro_batches=4),
    ],
)
def test_states_are_those_of_a_fake_rank(sides):
    """Exact, but for the numbers that stand for parameters while ZeRO has them away, and AdamW's
    step counters: 4 bytes for each of a few hundred tensors."""
    world, tensor, pipeline = 64, sides["tensor"], sides.get("pipeline", 1)
    data, m = world // tensor // pipeline, sides.get("micro_batches", 1)
    job = Job(
        shape=published_model("gpt2-large"),
        cluster=cluster_of("h100", gpus=world),
        batch_tokens=1024 * data * m,
        sequence=1024,
        states="float32",
        sequence_parallel=False,
        vocab_parallel=pipeline == 1,
    )
    layout = Layout(data=data, tensor=tensor, pipeline=pipeline, stage=sides.get("stage", 0))
    held = memory(job, Layouts.of([layout]))
    kept = scale(model="gpt2-large", block=1024, world=world, **sides).kept
    for name in CATEGORIES:
        assert held[name][0] == pytest.approx(kept[name], rel=1e-4), name


def test_a_fake_rank_of_a_mesh_holds_and_sends_what_was_planned():
    """Bytes that are sent are exact, activations within 5% at their highest."""
    config, sides = MODELS["gpt2-large"], dict(data=8, pipeline=4, tensor=2)
    batch = dict(micro_batch=2, micro_batches=4, block=1024)
    for rank, stage in ((0, 0), (2, 1), (6, 3)):
        job = {name: n for name, n in sides.items() if name != "data"} | batch
        record = scale(model="gpt2-large", world=64, rank=rank, **job).record
        sent = sent_by_side(record["comm"], record["sides"])
        assert sent == pytest.approx(mesh_bytes(config, **sides, **batch, stage=stage), abs=0.01)
        if stage == 0:
            planned, held = planned_memory(config, **sides, **batch), record["memory"]
            assert planned["parameters"] == pytest.approx(held["end"]["parameters"], rel=1e-4)
            assert planned["activations"] == pytest.approx(held["peaks"]["activations"], rel=0.05)


def test_calibration_measures_this_machine(tmp_path, capsys):
    file = tmp_path / "profile.json"
    assert cli.main(["plan", "--calibrate", str(file), "--gpus", "2", "--lang", "en"]) == 0
    profile = json.loads(file.read_text())
    assert 0 < min(profile["efficiency"].values()) <= max(profile["efficiency"].values()) == 1
    assert "network_bandwidth" in profile["assumed"]
    cluster = read_profile(file, gpus=2)
    assert cluster.node_bandwidth > 1e6
    assert 1e8 < cluster.sustained_matrix <= cluster.best_matrix < 1e15
    options = ["--profile", str(file), "--gpus", "2", "--batch", "8192", "--sequence", "1024"]
    capsys.readouterr()
    assert cli.main(["plan", "--model", "gpt2-large", *options, "--memory", "40e9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["gpu"] == profile["device"]
    assert said["fastest"]["seconds"] > 0
