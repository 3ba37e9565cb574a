"""One rank of thousands: the same bytes as in real ranks, and as the formulas say."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections import Counter

import cloudpickle
import pytest

from dlcourse import Ranks, cli
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.traffic import count_bytes, expert_trip_bytes
from dlcourse.plan import scale as scaling
from dlcourse.plan.scale import Job, Scaled, scale
from dlcourse.plan.scale_agreement import agreement
from dlcourse.ranks.notebook.agent_process import AgentProcess

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

STATES = ("parameters", "gradients", "optimizer_state")
TINY = GPTConfig(n_layer=2, n_head=4, n_embd=32, vocab_size=64, block_size=16)
SIZE = dict(model="tiny", world=4, micro_batch=2, block=16)
EXPERTS = dict(experts=8, top_k=2, expert=2)
JOBS = [
    *(dict(), dict(stage=1), dict(tensor=2), dict(tensor=2, stage=3)),
    *(dict(pipeline=2, micro_batches=2), EXPERTS),
    EXPERTS | dict(experts=12, top_k=4, expert=4, micro_batches=2),
    dict(pipeline=2, micro_batches=2, stage=1),
    EXPERTS | dict(tensor=2),
    *(EXPERTS | dict(stage=stage, micro_batches=2) for stage in (1, 2, 3)),
    EXPERTS | dict(tensor=2, stage=3),
    EXPERTS | dict(pipeline=2, micro_batches=2),
    EXPERTS | dict(pipeline=2, micro_batches=2, stage=1),
]


def summary(record: dict) -> tuple[dict[str, int], Counter]:
    """Bytes that stay after a step, and bytes by collective and size of group.

    Over Gloo a reduce-scatter is the direct exchange: a message to and from each other rank.
    """
    kept = {name: record["memory"]["end"][name] for name in STATES}
    moved: Counter = Counter()
    for event in record["comm"]:
        op, n, nbytes = event["op"], event["group_size"], event["bytes"]
        if op == "reduce_scatter":
            moved["send", n] += nbytes * (n - 1) // n
            moved["recv", n] += nbytes * (n - 1) // n
        elif n > 1:
            moved[op, n] += nbytes
    return kept, moved


def in_real_ranks(options: dict) -> tuple[dict[str, int], Counter]:
    """The same step as ``measure`` takes, with numbers."""
    import torch

    from dlcourse.measure.recorder import Recorder

    gc.collect()  # what the job before has left must not be counted
    scaling.MODELS["tiny"] = TINY
    job = Job(**SIZE, **options)
    step = scaling._job_step(job, scaling._job_mesh(job), scaling._job_model(job))
    tokens = torch.zeros(job.micro_batch * job.micro_batches, job.block, dtype=torch.long)
    recorder = Recorder(job.rank, job.world)
    with recorder:
        step(tokens, tokens)
    return summary(recorder.record)


@pytest.fixture(scope="module")
def four():
    with Ranks(4, default=False) as pool:
        yield pool


IN_FAKE_RANKS = f"""
import gc, json, sys
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.plan import scale
scale.MODELS["tiny"] = {TINY}
for job in json.loads(sys.argv[1]):
    gc.collect()
    print(json.dumps(scale.measure(scale.Job(**job))))
"""


def fake_records(jobs: list[dict]) -> list[dict]:
    """``measure`` of each job, in a process that knows the tiny model."""
    command = [sys.executable, "-c", IN_FAKE_RANKS, json.dumps([SIZE | job for job in jobs])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()[-len(jobs) :]]


@pytest.fixture(scope="module")
def fake() -> list[tuple[dict[str, int], Counter]]:
    return [summary(record) for record in fake_records(JOBS)]


@pytest.mark.parametrize("options", JOBS, ids=str)
def test_a_fake_rank_has_and_sends_what_a_real_one_does(four, fake, options):
    real = four.run(in_real_ranks, options)[0]
    assert fake[JOBS.index(options)] == real
    assert real[0]["parameters"] and real[1]


# The 7B model of width C and V bytes, cut for T = 8 tensor ranks. Whole in each of them: norms, the
# position embedding, and the biases of row-parallel layers. One message: 2,048 tokens in float32.
C, V, LAYERS, BLOCK, T = 4096, 51200, 32, 2048, 8
LAYER = (12 * C * C + 4 * C) // T + 6 * C
MESSAGE = 4 * BLOCK * C


def moved_by(scaled) -> dict:
    return {(row["op"], row["group_size"]): (row["calls"], row["bytes"]) for row in scaled.comm}


@pytest.mark.parametrize("world", [1024, 4096])
def test_zero_3_of_a_7b_model_is_what_the_formula_says(world):
    scaled = scale("06_zero", model="7b", world=world)
    data, units = world // T, LAYERS + 1  # the blocks, and the rest
    whole = LAYERS * LAYER + 2 * V * C // T + BLOCK * C + 2 * C
    shard = 4 * whole // data  # all units divide by 128 and by 512
    assert scaled.kept["parameters"] == shard + 4 * units  # a freed unit keeps one number
    assert scaled.kept["gradients"] == shard
    assert scaled.kept["optimizer_state"] == 2 * shard + 4 * units  # and Adam counts its steps
    moved = moved_by(scaled)
    # Gathered for forward and for backward, gradients sent once
    assert moved["all_gather", data] == (2 * units, 2 * 4 * whole)
    assert moved["reduce_scatter", data] == (units, 4 * whole)
    # Two a block in each direction, the embedding, the head; and three numbers a token for the loss
    loss = 4 * BLOCK * (1 + 2)
    assert moved["all_reduce", T] == (4 * LAYERS + 4, (4 * LAYERS + 2) * MESSAGE + loss)
    assert scaled.peak_rss_bytes < 1.5e9


@pytest.mark.parametrize(
    ("rank", "neighbours", "beside_layers"), [(0, 1, (V + BLOCK) * C), (8, 2, 0)]
)
def test_a_stage_of_a_7b_model_is_what_the_formula_says(rank, neighbours, beside_layers):
    """Stage 0 has the embeddings, whole; stage 1 has layers only, and two stages to talk to."""
    scaled = scale("05_pipeline_parallel", model="7b", world=1024, rank=rank)
    data, stages, micro_batches = 16, 8, 8
    layers = LAYERS // stages
    mine = 4 * (layers * LAYER + beside_layers)
    tensors = 13 * layers + 2 * (rank == 0)
    assert scaled.kept["parameters"] == scaled.kept["gradients"] == mine
    assert scaled.kept["optimizer_state"] == 2 * mine + 4 * tensors
    moved = moved_by(scaled)
    messages = (micro_batches * neighbours, micro_batches * neighbours * MESSAGE)
    assert moved["send", stages] == moved["recv", stages] == messages
    # The loss, 4 bytes, is added up along the pipeline (8 ranks, as many as T) and along data
    in_layers = 4 * layers * micro_batches
    assert moved["all_reduce", T] == (in_layers + 1, in_layers * MESSAGE + 4)
    assert moved["all_reduce", data][1] == mine + 4


@pytest.mark.parametrize(("expert", "experts"), [(8, 32), (2048, 2048)])
def test_experts_over_thousands_of_ranks_send_what_the_formula_says(expert, experts):
    options = dict(experts=experts, top_k=8, expert=expert, world=2048, micro_batch=16)
    scaled = Scaled(*fake_records([options]))
    layers, width, each, tokens = TINY.n_layer, TINY.n_embd, experts // expert, 16 * 16
    moved = moved_by(scaled)
    sent = {(row["op"], row["group_size"]): row["sent_bytes"] for row in scaled.comm}
    trip = expert_trip_bytes(tokens, width=width, top_k=8, world_size=expert)
    assert moved["all_to_all", expert][0] == 4 * layers  # two in forward, two in backward
    assert sent["all_to_all", expert] == 4 * layers * trip
    assert sent["all_gather", 2048] == layers * count_bytes(experts, 2048)
    # Experts of 4 C / K are averaged over those that hold the same, and kept by nobody else
    expert_bytes = 4 * layers * each * (2 * width * width // 2 + width // 2 + width)
    assert moved["all_reduce", 2048 // expert][1] == expert_bytes
    dense = moved["all_reduce", 2048][1]
    assert scaled.kept["parameters"] == expert_bytes + dense


@pytest.mark.parametrize("world", [1024, 16384])
def test_experts_with_tensors_and_zero_3_are_what_the_formula_says(world):
    """A 7B model whose MLPs are 64 experts, over 16 ranks x 8 tensor ranks x data.

    5 to 7 s each; that it stays under a minute is held in test_planner_ranks.py.
    """
    E, K, R, e = 64, 8, 16, 4
    sides = dict(tensor=T, expert=R, experts=E, top_k=K, stage=3)
    scaled = scale(model="7b", world=world, **sides)
    batch, data, units = world // T, world // T // R, LAYERS + 1
    F = 4 * C // K
    # Of a layer: attention cut, its last bias, two norms and the router whole; an expert's two
    # matrices and first bias cut, its last one whole
    dense = 4 * C * C // T + C + 4 * C + C * E
    experts = e * ((2 * C * F + F) // T + C)
    outside = 2 * V * C // T + BLOCK * C + 2 * C
    whole = LAYERS * (dense + experts) + outside
    shard = (LAYERS * dense + outside) // batch + LAYERS * experts // data  # all divide
    flats = units + LAYERS  # of each unit, and of each layer's experts
    assert scaled.kept["parameters"] == 4 * shard + 4 * flats
    assert scaled.kept["gradients"] == 4 * shard
    assert scaled.kept["optimizer_state"] == 8 * shard + 4 * flats
    moved = moved_by(scaled)
    shared = (LAYERS * dense + outside, LAYERS * experts)
    for group, numbers, count in ((batch, shared[0], units), (data, shared[1], LAYERS)):
        assert moved["reduce_scatter", group] == (count, 4 * numbers)
        gathered = moved["all_gather", group]
        counts = 8 * (E + 3) * batch * LAYERS if group == batch else 0  # rows for each expert
        assert gathered[1] == 2 * 4 * numbers + counts
    assert sum(shared) == whole
    # Each token's 8 rows go out and come back, and again in backward
    assert moved["all_to_all", R] == (4 * LAYERS, 4 * LAYERS * K * MESSAGE)
    # Attention's two all-reduces and the vocabulary's two, of the tokens; the experts' two, of
    # rows; of their last biases' gradients one; and three numbers a token for the loss
    sums = (2 * LAYERS + 2) * MESSAGE + 2 * LAYERS * K * MESSAGE + LAYERS * 4 * e * C
    same = batch if batch == T else T
    assert moved["all_reduce", same][1] == sums + 4 * BLOCK * 3
    agreed = agreement(scaled)
    assert agreed.holds, repr(agreed)


def test_more_ranks_make_no_more_calls():
    few, many = (
        scale("04_tensor_parallel", model="gpt2-large", world=world, tensor=4, block=1024)
        for world in (64, 4096)
    )
    assert few.kept == many.kept and few.at_peak == many.at_peak
    assert [row["calls"] for row in few.comm] == [row["calls"] for row in many.comm]
    assert "4,096" in repr(many) and "4,096" in many._repr_html_()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(world=100, tensor=8), ("12 x 1 x 8", "96", "100")),
        (dict(world=1000, tensor=5), ("n_head=32", "5")),
        (dict(model="8b"), ("'8b'", "13b")),
        (dict(pipeline=64), ("pipeline=64", "32 layers")),
        (dict(pipeline=2, stage=2), ("stage=2", "pipeline=2")),
        (dict(stage=4), ("stage=4",)),
        (dict(rank=1024), ("rank=1024", "1023")),
        (dict(block=4096), ("block=4096", "2048")),
        (dict(world=0), ("world=0",)),
        (dict(world=262_145), ("world=262145", "at most 262144")),
        (dict(pipeline=8), ("micro_batches=1", "pipeline=8")),
        (dict(lesson="05_pipeline_parallel", micro_batches=7), ("micro_batches=7", "pipeline=8")),
        (dict(micro_batch=1.5), ("micro_batch=1.5", "whole number")),
        (dict(tensor=2.0), ("tensor=2.0", "whole number")),
        (dict(rank=0.5), ("rank=0.5", "1023")),
        (dict(expert=8), ("experts=0",)),
        (dict(experts=4, top_k=8), ("top_k=8", "experts=4")),
        (dict(experts=8, expert=16), ("expert=16 ranks", "experts=8")),
        (dict(experts=12, expert=8), ("experts=12", "expert=8")),
        (dict(experts=8, expert=8, world=12), ("expert=8", "world=12")),
        (dict(experts=8, expert=8, tensor=256), ("expert=8 x pipeline=1 x tensor=256", "1024")),
        (dict(experts=8, top_k=4096, tensor=8), ("top_k=4096", "experts=8")),
        (dict(experts=4096, top_k=4096, tensor=8), ("tensor=8", "top_k=4096", "the 4 that")),
        (dict(experts=8, pipeline=2, stage=2), ("stage=2", "pipeline=2")),
        (dict(experts=8, top_k=3), ("top_k=3", "16384")),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_starts(options, words, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(ValueError) as refused:
        scale(**options)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_rank_finds_what_a_new_process_does(four, monkeypatch):
    """A notebook with ranks has torch to fork; one without, and the command, start a process."""
    if not AgentProcess.forks_here():
        pytest.skip("ranks are not forked here")
    job = dict(lesson="06_zero", model="gpt2-large", world=64, tensor=4, block=1024)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "run", None)
        forked = scale(**job)
    monkeypatch.setattr(AgentProcess, "forks_here", lambda: False)
    alone = scale(**job)
    assert (forked.kept, forked.at_peak, forked.comm) == (alone.kept, alone.at_peak, alone.comm)
    assert set(forked.record) == set(alone.record)


def test_the_command_takes_a_number_and_capitals(capsys, monkeypatch):
    """As people write them: 6 for 06, 7B for 7b."""
    asked = []
    monkeypatch.setattr(scaling, "scale", lambda *lesson, **job: asked.append((lesson, job)))
    monkeypatch.setattr("dlcourse.plan.scale_agreement.agreement", lambda scaled: None)
    assert cli.main(["scale", "6", "--model", "GPT2-Large"]) == 0
    assert asked == [(("06_zero",), dict(model="gpt2-large", world=1024))]


@pytest.mark.parametrize("lesson", scaling.LESSONS)
def test_each_lessons_job_can_run_as_it_is(lesson):
    Job(**scaling.LESSONS[lesson])


def test_the_command_prints_the_record(capsys):
    options = ["--model", "gpt2-large", "--world", "64", "--block", "1024", "--json"]
    assert cli.main(["scale", "03", *options]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["memory"]["end"]["parameters"] == 4 * record["parameters"]
    assert cli.main(["scale", "99"]) == 2 and "99" in capsys.readouterr().err
