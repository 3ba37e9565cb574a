"""The planner against one rank of thousands, and its calibration on this machine's real ranks."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
import time
from dataclasses import replace

import cloudpickle
import pytest

from dlcourse import Ranks, cli
from dlcourse.formulas.mesh import mesh_bytes
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.measure.sides import sent_by_side
from dlcourse.plan import scale as scaling
from dlcourse.plan.calibrate import read_profile
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.kernels import matrix_seconds
from dlcourse.plan.launch import files
from dlcourse.plan.layout_bytes import layout_bytes
from dlcourse.plan.layouts import Layout
from dlcourse.plan.model_shape import gpt_shape, total_numbers
from dlcourse.plan.own_mesh import planned_memory
from dlcourse.plan.scale_agreement import Agreement, Line, agreement
from dlcourse.words.strings import t

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

# Large enough that the loss needs more than a layer's backward, as in models that are trained
SMALL = GPTConfig(n_layer=4, n_head=4, n_embd=64, vocab_size=1024, block_size=64)
EXPERTS = dict(experts=8, top_k=2)
EIGHT = dict(expert=2, tensor=2, pipeline=2, micro_batches=4)
# Eight layers of a model for one GPU: what depends on the number of ranks is as in 7B
MIDDLE = GPTConfig(n_layer=8, n_head=16, n_embd=1024, vocab_size=16384, block_size=1024)
MANY = dict(expert=16, experts=256, top_k=8)
STAGES = dict(tensor=4, pipeline=4, micro_batches=8)
# Data x tensor x pipeline x ZeRO, and experts: sides of a job of 1,024 and of 16,384 ranks
THOUSANDS = [
    dict(world=world, **sides)
    for world in (1024, 16384)
    for sides in (
        dict(tensor=8, pipeline=4, micro_batches=8),
        dict(tensor=8, pipeline=4, micro_batches=8, stage=1, rank=8),
        dict(tensor=8, stage=1, micro_batches=2),
        dict(tensor=8, stage=2, micro_batches=2),
        dict(tensor=8, stage=3),
        dict(expert=64, experts=256, top_k=8, micro_batches=2),
        *(MANY | dict(stage=stage, micro_batches=2) for stage in (1, 2, 3)),
        MANY | dict(tensor=4),
        MANY | dict(tensor=4, stage=3),
        *(MANY | STAGES | dict(stage=1, rank=rank) for rank in (0, 64, 192)),
        MANY | STAGES,
    )
]
# Where a router's scores weigh as much as an expert's numbers, and where gradients that are being
# made weigh more than the activations: few tokens, wide experts, many in a rank. They were 12 to
# 55% apart
FEW_TOKENS = [
    dict(world=4096, expert=4096, experts=4096, top_k=8, block=512),
    dict(world=64, block=128),
    dict(world=64, block=128, stage=3),
    dict(world=64, expert=4, experts=256, top_k=8, block=256),
    dict(world=64, expert=16, experts=64, top_k=1, block=512),
    dict(world=64, expert=16, experts=256, top_k=8, block=128, tensor=4),
]


def in_a_fake_rank(job: dict) -> dict:
    """As `dlcourse scale` in a notebook: in the rank of a pool of one, which has torch already."""
    import torch.distributed as dist

    dist.destroy_process_group()
    gc.disable()
    scaling.MODELS["middle"] = MIDDLE
    record = scaling.measure(scaling.Job(**{"model": "middle", "block": 1024} | job))
    return record | {"cpu_seconds": time.process_time()}


def lines_apart(agreed: Agreement) -> list[str]:
    return [f"{line.what}: {line.rank} {line.planner}" for line in agreed.lines if not line.holds]


@pytest.mark.parametrize("job", THOUSANDS + FEW_TOKENS, ids=str)
def test_planner_and_fake_rank_agree_at_thousands_of_ranks(job):
    """States and collectives to the byte, activations within 5%.

    Each took 2 to 12 s on 2 busy cores, 7B up to 42 s (2026-11): under a minute, as is asked.
    """
    with Ranks(1, default=False) as alone:
        record = alone.run(in_a_fake_rank, job)[0]
    agreed = agreement(scaling.Scaled(record), MIDDLE)
    assert agreed.holds, lines_apart(agreed)
    assert len(agreed.lines) >= 5  # three states, activations, a collective
    assert record["cpu_seconds"] < 60  # processor time: whatever else runs here


def in_real_ranks(options: dict) -> dict:
    """A step of the small model with numbers: what rank 0 records."""
    import torch

    from dlcourse.measure.recorder import Recorder

    gc.collect()  # what the job before has left must not be counted
    scaling.MODELS["small"] = SMALL
    job = scaling.Job(model="small", block=64, micro_batch=2, **options)
    step = scaling._job_step(job, scaling._job_mesh(job), scaling._job_model(job))
    tokens = torch.zeros(job.micro_batch * job.micro_batches, job.block, dtype=torch.long)
    recorder = Recorder(job.rank, job.world)
    with recorder:
        step(tokens, tokens)
    more = {"job": dataclasses.asdict(job) | {"data": job.data}, "parameters": 0}
    return recorder.record | more | {"seconds": 0.0, "peak_rss_bytes": 0}


def as_over_gloo(agreed: Agreement) -> Agreement:
    """A reduce-scatter is the direct exchange there: a message to and from each other rank."""

    def name(op: str, ranks: int) -> str:
        return t("plan.agree.collective", op=op, ranks=ranks)

    lines = {line.what: line for line in agreed.lines}
    for ranks in (2, 4, 8):
        scattered = lines.pop(name("reduce_scatter", ranks), None)
        for op in ("send", "recv") if scattered else ():
            line = lines.get(name(op, ranks), Line(name(op, ranks), 0, 0))
            wanted = line.planner + scattered.planner * (ranks - 1) / ranks
            lines[line.what] = replace(line, planner=wanted)
    return Agreement([*lines.values()])


@pytest.mark.parametrize(
    ("world", "options"),
    [
        (
            8,
            [
                dict(tensor=2, pipeline=2, micro_batches=4),
                *(EXPERTS | EIGHT | dict(stage=stage) for stage in (0, 1)),
                *(EXPERTS | dict(expert=2, tensor=2, stage=stage) for stage in (0, 1, 2, 3)),
            ],
        ),
        (4, [EXPERTS | dict(expert=2, micro_batches=2), EXPERTS | dict(expert=4), dict(tensor=4)]),
    ],
    ids=["8 ranks", "4 ranks"],
)
def test_planner_and_real_ranks_agree(world, options):
    with Ranks(world, default=False) as pool:
        for sides in options:
            record = pool.run(in_real_ranks, dict(world=world, **sides))[0]
            agreed = as_over_gloo(agreement(scaling.Scaled(record), SMALL))
            exact = [line for line in agreed.lines if not line.allowed]
            assert len(exact) >= 4
            assert all(line.apart == 0 for line in exact), (sides, lines_apart(agreed))
            assert agreed.holds, (sides, lines_apart(agreed))


# Layouts whose DeepSpeed JSON a machine without a GPU can use: no bf16 kernels, no compiler
FOR_DEEPSPEED = [dict(stage=0), dict(stage=1), dict(stage=2, recompute="full"), dict(stage=3)]


def in_deepspeed(config: dict) -> dict:
    """An engine from the file as it is, and a step: what DeepSpeed understood."""
    import torch

    from dlcourse.models.gpt import GPT
    from dlcourse.peers.deepspeed_engine import start

    deepspeed = start("cpu")
    gpt = GPT(SMALL)
    own = torch.optim.AdamW(gpt.parameters())
    more = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    engine, *_ = deepspeed.initialize(model=gpt, optimizer=own, config=config | more)
    tokens = torch.zeros(engine.train_micro_batch_size_per_gpu(), 64, dtype=torch.long)
    for _ in range(engine.gradient_accumulation_steps()):
        engine.backward(engine(tokens, tokens))
        engine.step()
    found = dict(stage=engine.zero_optimization_stage(), steps=engine.global_steps)
    found |= dict(batch=engine.train_batch_size(), bf16=engine.bfloat16_enabled())
    engine.destroy()
    return found


def test_deepspeed_takes_its_file_and_steps():
    pytest.importorskip("deepspeed") if "CI" not in os.environ else None
    job = Job(
        shape=gpt_shape(SMALL),
        cluster=cluster_of("h100", gpus=2),
        batch_tokens=8 * 64,
        sequence=64,
    )
    with Ranks(2, default=False) as pool:
        for sides in FOR_DEEPSPEED:
            layout = Layout(data=2, micro_batch=2, **sides)
            config = json.loads(files(job, layout)["deepspeed.json"])
            found = pool.run(in_deepspeed, config)[0]
            assert found == dict(stage=layout.stage, steps=1, batch=8, bf16=True), sides


def test_a_fake_rank_of_a_mesh_sends_what_the_formula_says():
    """By side, to the byte; and lesson 15's prediction of memory is the planner's."""
    config, sides = MODELS["gpt2-large"], dict(data=8, pipeline=4, tensor=2)
    batch = dict(micro_batch=2, micro_batches=4, block=1024)
    for rank, stage in ((0, 0), (2, 1), (6, 3)):
        job = {name: n for name, n in sides.items() if name != "data"} | batch
        record = scaling.scale(model="gpt2-large", world=64, rank=rank, **job).record
        sent = sent_by_side(record["comm"], record["sides"])
        assert sent == pytest.approx(mesh_bytes(config, **sides, **batch, stage=stage), abs=0.01)
        if stage == 0:
            planned, held = planned_memory(config, **sides, **batch), record["memory"]
            assert planned["parameters"] == held["end"]["parameters"]
            assert planned["activations"] == pytest.approx(held["peaks"]["activations"], rel=0.05)


def test_the_command_shows_the_planner_beside_the_rank(capsys):
    options = ["--model", "gpt2-large", "--world", "64", "--block", "1024"]
    assert cli.main(["scale", "03", *options, "--lang", "en"]) == 0
    said = capsys.readouterr().out
    assert "The planner and this rank agree" in said and "all_reduce, 64 ranks" in said


def test_sequence_parallelism_sends_as_much_and_recomputation_more():
    """An all-reduce is a reduce-scatter and an all-gather; backward gathers inputs once more."""
    job = Job(
        shape=published_model("llama-3-8b"),
        cluster=cluster_of("h100", gpus=64),
        batch_tokens=64 * 4096,
    )
    plain = replace(job, sequence_parallel=False)
    layout = Layout(data=8, tensor=8)

    def sent(job: Job, layout: Layout, side: str = "tensor") -> float:
        return sum(m.sent for m in layout_bytes(job, layout) if m.side == side)

    one = sent(plain, layout)
    layers, stream = job.shape.layers, 8 * 4096 * 4096 * 2
    loss = 2 * 7 / 8 * 3 * 4 * 8 * 4096
    assert one == pytest.approx((4 * layers + 2) * 2 * 7 / 8 * stream + loss)
    again = (2 * layers + 1) * 7 / 8 * stream
    assert sent(job, layout) == pytest.approx(one + again)
    full = sent(plain, replace(layout, recompute="full"))
    assert full == pytest.approx(one + 2 * layers * 2 * 7 / 8 * stream)
    # ZeRO: an all-reduce is its two halves; stage 3 gathers parameters twice
    numbers = total_numbers(job.shape)
    by_stage = {z: sent(job, Layout(data=64, stage=z), "data") for z in (0, 1, 2, 3)}
    part = 63 / 64 * numbers
    assert by_stage[0] == pytest.approx(part * 2 * 4)
    assert by_stage[1] == by_stage[2] == pytest.approx(part * (4 + 2), rel=1e-6)
    assert by_stage[3] == pytest.approx(part * (4 + 2 * 2), rel=1e-6)
    # Experts: once to each rank that has some of a token's, or a copy for each
    mixture = replace(job, shape=published_model("qwen3-30b-a3b"))
    experts = Layout(data=64, expert=8)
    once, each = (
        sent(replace(mixture, dispatch=how), experts, "expert") for how in ("once", "plain")
    )
    assert 0.6 < once / each < 0.7


def test_calibration_measures_this_machine(tmp_path, capsys):
    file = tmp_path / "profile.json"
    assert cli.main(["plan", "--calibrate", str(file), "--gpus", "2", "--lang", "en"]) == 0
    profile = json.loads(file.read_text())
    assert 0 < min(profile["efficiency"].values()) <= max(profile["efficiency"].values()) == 1
    assert "network_bandwidth" in profile["assumed"]
    cluster = read_profile(file, gpus=2)
    for side, share in profile["efficiency"].items():  # a product of each size takes what it took
        measured = 2 * int(side) ** 3 / (share * cluster.best_matrix)
        reading = 3 * 2 * int(side) ** 2 / cluster.bandwidth
        least = max(measured, reading, cluster.kernel_seconds)
        assert matrix_seconds(cluster, *[int(side)] * 3) == pytest.approx(least)
    assert cluster.node_bandwidth > 1e6
    assert 1e8 < cluster.sustained_matrix <= cluster.best_matrix < 1e15
    options = ["--profile", str(file), "--gpus", "2", "--batch", "8192", "--sequence", "1024"]
    capsys.readouterr()
    assert cli.main(["plan", "--model", "gpt2-large", *options, "--memory", "40e9", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["gpu"] == profile["device"]
    assert said["fastest"]["seconds"] > 0
