"""Pipeline schedules are data: checked, simulated, and executed as the training of one process.

Tolerances. Micro-batches are added in another order than one process adds the rows of a batch: in
float64 that moves the last digits (1e-12 asked for), in float32 about 1e-7 of a gradient's size.
Adam divides a gradient by its own size, so near zero a rounding error may grow to a part of a
step: parameters are compared to 5% of one step's length, lr = 1e-3.
"""

from __future__ import annotations

import doctest
import gc
import inspect
import os
import re
import subprocess
import sys
import weakref

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from dlcourse import RankError, Ranks
from dlcourse.corpus import Corpus
from dlcourse.course.exercises import measured
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel import pipeline_schedules
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.pipeline import (
    PipelineParallel,
    check_schedule,
    train,
)
from dlcourse.parallel.pipeline_emulation import run_emulated
from dlcourse.parallel.pipeline_schedules import (
    SCHEDULES,
    Action,
    Schedule,
    dual_pipe_v,
    gpipe,
    interleaved,
    make_schedule,
    one_f_one_b,
    zb_h1,
    zb_v,
)
from dlcourse.parallel.pipeline_simulation import message_time, simulate, validate
from dlcourse.parallel.pipeline_stages import Stage, StageWorker, split_layers
from dlcourse.peers import pipeline_parallel as torch_peer
from dlcourse.training import loop
from dlcourse.training.checkpointing.segments import checkpoint_blocks

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

LR = 1e-3
SMALL = dict(block_size=8, n_head=2, n_embd=16)
MICRO_BATCHES = {1: 2, 2: 4, 3: 6, 4: 8}


def on_ranks(*numbers):
    """Run a test on run of these sizes; pytest groups the tests by size, one pool for each."""
    return pytest.mark.parametrize("num_ranks", numbers, scope="module")


@pytest.fixture(scope="module")
def run(num_ranks):
    with Ranks(num_ranks, timeout=120) as pool:
        yield pool.run


# --- Schedules on paper -------------------------------------------------------------------------

SIZES = [(w, m) for w in (1, 2, 3, 4, 6, 8) for m in (2 * w, 4 * w)]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("w", "m"), SIZES)
def test_every_schedule_is_complete_and_can_run(name, w, m):
    schedule = make_schedule(name, w, m)
    validate(schedule)
    work = [sum(len(action.kind) for action in row) for row in schedule.ranks]
    assert work == [3 * m * schedule.num_chunks] * w
    assert Schedule.parse(schedule.text().split("\n"), placement=schedule.placement).ranks == (
        schedule.ranks
    )


@pytest.mark.parametrize(("w", "m"), SIZES)
@pytest.mark.parametrize("times", [(1, 1, 1), (1, 2, 1), (3, 2, 2)])
def test_bubbles_are_those_of_the_papers(w, m, times):
    """Idle time of a rank, in a schedule whose stages all take the same (p is w here)."""
    t_F, t_B, t_W = times

    def idle(schedule):
        chunks = schedule.num_chunks
        parts = {"t_F": t_F / chunks, "t_B": t_B / chunks, "t_W": t_W / chunks}
        gantt = simulate(schedule, **parts)
        ideal = m * sum(times)
        assert gantt.busy == pytest.approx([ideal] * w)
        assert gantt.idle_over_ideal == pytest.approx(gantt.total / ideal - 1)
        assert gantt.idle_over_total == pytest.approx(1 - ideal / gantt.total)
        return gantt.total - ideal

    whole = (w - 1) * (t_F + t_B + t_W)
    assert idle(gpipe(w, m)) == pytest.approx(whole)
    assert idle(one_f_one_b(w, m)) == pytest.approx(whole)
    for chunks in (2, 3):
        assert idle(interleaved(w, m, chunks)) == pytest.approx(whole / chunks)
    if t_F == t_B == t_W:
        assert idle(zb_h1(w, m)) == pytest.approx(whole / 3)
        assert idle(zb_v(w, m)) == pytest.approx(whole / 6)
        assert simulate(zb_v(w, m)).idle_inside == pytest.approx(0)
    assert idle(zb_h1(w, m)) <= idle(one_f_one_b(w, m))


@pytest.mark.parametrize(("w", "m"), SIZES)
def test_activations_in_flight(w, m):
    """In stages of one chunk each; where a rank has two, its activations are half as large."""
    assert simulate(gpipe(w, m)).peak_in_flight == [m] * w
    assert simulate(one_f_one_b(w, m)).peak_in_flight == [w - r for r in range(w)]
    assert simulate(zb_h1(w, m)).peak_in_flight == [w] * w
    assert simulate(zb_v(w, m)).peak_in_flight == [2 * w] * w
    assert simulate(dual_pipe_v(w, m)).peak_in_flight == [2 * w + 1] * w


def test_drawings_are_those_of_the_simulation():
    found = doctest.testmod(pipeline_schedules, extraglobs={"simulate": simulate})
    assert (found.failed, found.attempted) == (0, 4)


@pytest.mark.parametrize("make", [zb_v, dual_pipe_v])
def test_the_pieces_of_a_drawing_are_its_ranks(make):
    """Each column of the table, read down, is what the rank does: the drawing without its dots."""
    lines = inspect.getdoc(make).splitlines()
    head = next(i for i, line in enumerate(lines) if re.fullmatch(r" +rank 0 +rank 1", line))
    cuts = [lines[head].index(f"rank {rank}") for rank in (0, 1)]
    pieces = [(line[cuts[0] : cuts[1]], line[cuts[1] :]) for line in lines[head + 1 :]]
    for rank, drawn in enumerate(simulate(make(2, 4)).text().splitlines()):
        works = drawn.removeprefix(f"rank {rank}").replace(".", "").split()
        assert " ".join(piece[rank] for piece in pieces).split() == works


def test_times_of_stages_and_of_messages():
    two = Schedule.parse(["F0 F1 BW0 BW1", "F0 BW0 F1 BW1"])
    gantt = simulate(two, t_F=[1, 2], t_B=[1, 2], t_W=[1, 2], t_send=0.5)
    starts = [[(start, str(action)) for start, _, action in row] for row in gantt.spans]
    assert starts[0] == [(0, "F0"), (1, "F1"), (8, "BW0"), (14, "BW1")]
    assert starts[1] == [(1.5, "F0"), (3.5, "BW0"), (7.5, "F1"), (9.5, "BW1")]
    assert gantt.total == 16
    assert message_time(two, gantt) == 0.5
    assert gantt.busy == [6, 12]
    with pytest.raises(ValueError, match="t_F has 3 times for 2 stages"):
        simulate(two, t_F=[1, 2, 3])


def test_a_v_folds_the_stages():
    schedule = zb_v(4, 8)
    assert [[schedule.stage(r, c) for c in (0, 1)] for r in range(4)] == [
        [0, 7],
        [1, 6],
        [2, 5],
        [3, 4],
    ]
    loop_ = interleaved(4, 8)
    assert [[loop_.stage(r, c) for c in (0, 1)] for r in range(4)] == [
        [0, 4],
        [1, 5],
        [2, 6],
        [3, 7],
    ]
    for each in (schedule, loop_):
        for rank in range(4):
            for chunk in (0, 1):
                assert each.where(each.stage(rank, chunk)) == (rank, chunk)


def test_a_deadlock_is_told_with_its_place_and_its_reason():
    stuck = Schedule.parse(["F0 BW0 F1 BW1", "F0 F1 BW0 BW1"])
    with pytest.raises(ValueError) as error:
        validate(stuck)
    text = str(error.value)
    assert "deadlocks after 2 of 8 actions" in text
    assert "rank 0 stands before BW0 (its action 1) and needs rank 1's BW0" in text
    assert "rank 1 stands before F1 (its action 1) and needs rank 0's F1" in text
    assert "in rank 0, F1 has to come before BW0" in text
    early = Schedule.parse(["F0 W0 B0", "F0 BW0"])
    with pytest.raises(ValueError, match="needs its own B0") as error:
        validate(early)
    assert "in rank 0, B0 has to come before W0" in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["F0 BW0", "BW0"], "rank 1: micro-batch 0 has 0 F and needs 1"),
        (["F0 B0", "F0 BW0"], "rank 0: micro-batch 0 has 1 B, 0 W, 0 BW and needs"),
        (["F0 F0 BW0", "F0 BW0"], "micro-batch 0 has 2 F and needs 1"),
        (["F0 BW0 F1.1 BW1.1", "F0 BW0"], "in chunk 1 has 0 F and needs 1"),
    ],
)
def test_incomplete_schedules(rows, message):
    with pytest.raises(ValueError, match="is not complete") as error:
        validate(Schedule.parse(rows))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_f_one_b(4, 3), "1f1b on 4 ranks needs at least 4 .* not num_micro_batches=3"),
        (lambda: zb_h1(4, 2), "zb_h1 on 4 ranks needs at least 4 .* not num_micro_batches=2"),
        (lambda: zb_v(4, 6), "needs at least 7 micro-batches, not num_micro_batches=6"),
        (lambda: dual_pipe_v(4, 7), "needs at least 8 micro-batches, not num_micro_batches=7"),
        (lambda: interleaved(4, 6), "a multiple of 4 micro-batches, not num_micro_batches=6"),
        (lambda: interleaved(4, 8, 0), "num_chunks=0 is not allowed"),
        (lambda: gpipe(4, 0), "num_micro_batches=0 is not allowed"),
        (lambda: gpipe(4, 2.0), "num_micro_batches=2.0 is not allowed"),
        (lambda: make_schedule("2f2b", 4, 8), "'2f2b' is unknown: choose one of gpipe"),
        (lambda: check_schedule(gpipe(4, 8), 3), "is for 4 ranks and there are 3"),
        (lambda: check_schedule(gpipe(8, 8), 8, 4), "4 layers cannot fill 8 stages"),
        (lambda: Action.parse("G3"), "action 'G3' is not one"),
        (lambda: Schedule.parse([""]), "without an action"),
        (lambda: Schedule.parse(["F0 BW0"], placement="w"), "placement='w' is unknown"),
        (lambda: Schedule.parse(["F0 BW0"], placement="v"), "not num_chunks=1"),
    ],
)
def test_bad_input_is_refused_before_any_rank_starts(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_split_layers():
    assert split_layers(12, 4) == [range(3), range(3, 6), range(6, 9), range(9, 12)]
    assert [len(layers) for layers in split_layers(7, 3)] == [3, 2, 2]
    assert split_layers(2, 1) == [range(2)]


# --- One stage: B and W are the whole backward --------------------------------------------------


def test_b_computes_no_weight_gradient_and_w_adds_all_of_them():
    model = GPT(GPTConfig(n_layer=2, **SMALL)).double()
    random = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 16, generator=random, dtype=torch.float64)
    targets = torch.randint(256, (3, 8), generator=random)
    stage = Stage(model, range(1, 2))
    worker = StageWorker(stage)
    counted = []

    def backward(split):
        stage.zero_grad()
        worker.forward(0, x, targets, share=torch.tensor(0.5))
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            if split:
                grad = worker.backward_input(0, None)
                assert all(p.grad is None for p in stage.parameters() if p.dim() == 2)
                counted.append(counter.get_total_flops())
                worker.backward_weight(0)
            else:
                grad = worker.backward(0, None)
        counted.append(counter.get_total_flops())
        return [grad, *(p.grad.clone() for p in stage.parameters())]

    for split, whole in zip(backward(True), backward(False), strict=True):
        assert torch.equal(split, whole)
    b, b_and_w, bw = counted
    assert b_and_w == bw  # nothing is computed twice
    assert b < 0.65 * bw
    assert not worker.kept and not worker.waiting


def test_a_stage_goes_with_its_last_reference():
    """A cycle would keep parameters and gradients until Python looks for cycles."""
    stage = Stage(GPT(GPTConfig(n_layer=2, n_embd=16, n_head=2, block_size=8)), range(1))
    worker = StageWorker(stage)
    tokens = torch.zeros(2, 8, dtype=torch.long)
    y = worker.forward(0, tokens)
    worker.backward_input(0, torch.ones_like(y))
    worker.backward_weight(0)
    alive = weakref.ref(stage.blocks["0"].mlp_norm.weight)
    gc.disable()
    try:
        del stage, worker
        assert alive() is None
    finally:
        gc.enable()


def test_what_waits_for_w_is_no_more_than_a_forward_keeps():
    """Of a block, in widths: 7 of its matrices' inputs and 9 of their outputs' gradients."""
    stage = Stage(GPT(GPTConfig(n_layer=3, **SMALL)), range(1, 2))
    worker, x = StageWorker(stage), torch.randn(3, 8, 16)
    parameters = {p.untyped_storage().data_ptr() for p in stage.parameters()}

    def widths(tensors):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        return sum(n for at, n in storages.items() if at not in parameters) / x.nbytes

    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        worker.forward(0, x)
    kept = widths(saved)
    worker.backward_input(0, torch.ones_like(x))
    assert not worker.kept
    waiting = widths([t for _, *pair in worker.waiting[0] for t in pair])
    assert waiting == 16 and waiting <= kept < 17


# --- Real ranks ---------------------------------------------------------------------------------


def compare_with_one_process(name, *, dtype=torch.float64, tie=False, frozen=(), steps=5):
    """Train the same job in a pipeline and alone; return how far they are apart in this rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    schedule = make_schedule(name, world_size, MICRO_BATCHES[world_size])
    config = GPTConfig(n_layer=max(2 * world_size, 3), tie_embeddings=tie, **SMALL)
    torch.set_default_dtype(dtype)
    try:
        alone, ours = GPT(config), GPT(config, seed=rank)  # only rank 0 starts from seed 0
    finally:
        torch.set_default_dtype(torch.float32)
    for model in (alone, ours):
        for key, parameter in model.named_parameters():
            parameter.requires_grad_(not key.startswith(tuple(frozen)))
    pipeline = PipelineParallel(ours, schedule)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LR) for model in (alone, pipeline)]
    theirs = dict(alone.named_parameters(remove_duplicate=False))
    pairs = [(p, theirs[key]) for stage in pipeline.stages for key, p in stage.named_parameters()]
    corpus = Corpus(limit=100_000)
    apart = dict.fromkeys(("losses", "gradients", "parameters"), 0.0)

    def note(what, difference):
        apart[what] = max(apart[what], difference)

    for step in range(steps):
        batch = corpus.batch(step, micro_batch=2 * schedule.num_micro_batches, block=8)
        for optimizer in optimizers:
            optimizer.zero_grad()
        wanted = alone(*batch)
        wanted.backward()
        loss = pipeline.step(*batch)
        if rank == pipeline.last_rank:
            note("losses", abs(loss.item() - wanted.item()))
        for a, b in pairs:
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None:
                note("gradients", (a.grad - b.grad).abs().max().item())
        for optimizer in optimizers:
            optimizer.step()
        for a, b in pairs:
            note("parameters", (a - b).abs().max().item())
    return apart | {
        "names": [key for stage in pipeline.stages for key, _ in stage.named_parameters()]
    }


FLOAT64 = dict(losses=1e-12, gradients=1e-12, parameters=1e-12)
FLOAT32 = dict(losses=5e-6, gradients=5e-6, parameters=0.05 * LR)


def several(cases):
    return [compare_with_one_process(**case) for case in cases]


def assert_equal_training(results, tolerance):
    for of_rank in results:
        for number, apart in enumerate(of_rank):
            for what, limit in tolerance.items():
                assert apart[what] <= limit, (number, apart)


@on_ranks(1, 2, 3, 4)
def test_every_schedule_equals_one_process(run, num_ranks):
    cases = [dict(name=name) for name in SCHEDULES]
    results = run(several, cases)
    assert_equal_training(results, FLOAT64)
    for number in range(len(cases)):  # every parameter is in one rank
        names = [name for of_rank in results for name in of_rank[number]["names"]]
        layers = max(2 * num_ranks, 3)
        config = GPTConfig(n_layer=layers, **SMALL)
        assert sorted(names) == sorted(dict(GPT(config).named_parameters()))


@on_ranks(1, 4)
def test_tied_and_frozen_parameters(run, num_ranks):
    names = ("1f1b", "zb_h1", "zb_v")
    frozen = ("token_embedding", "position_embedding", "blocks.0", "blocks.1", "blocks.4")
    cases = [dict(name=name, tie=True) for name in names]
    cases += [dict(name=name, frozen=frozen) for name in ("1f1b", "zb_h1")]
    cases += [dict(name="zb_v", frozen=("token_embedding", "norm"), tie=True)]
    cases += [dict(name="1f1b", frozen=("head", "token_embedding"), tie=True)]
    assert_equal_training(run(several, cases), FLOAT64)


@on_ranks(4)
def test_float32(run):
    cases = [dict(name=name, dtype=torch.float32) for name in ("gpipe", "zb_v")]
    assert_equal_training(run(several, cases), FLOAT32)


def ledger_peak(name, num_micro_batches, in_torch=False):
    """Largest activations of a step in this rank, in bytes; 2 layers a rank, 1 a chunk."""
    config = GPTConfig(n_layer=8, n_embd=64, block_size=64)
    if in_torch:
        pipeline = torch_peer.TorchPipeline(GPT(config), name, num_micro_batches)
    else:
        pipeline = PipelineParallel(GPT(config), make_schedule(name, 4, num_micro_batches))
    batch = Corpus(limit=99_999).batch(0, micro_batch=2 * num_micro_batches, block=64)
    pipeline.step(*batch)
    with measured() as seen:
        pipeline.step(*batch)
    return seen.record["memory"]["peaks"]["activations"]


@on_ranks(4)
def test_the_ledger_shows_the_activations_that_the_simulation_counts(run):
    """To a fifth of a micro-batch's, or 6%: what one backward needs for a moment comes on top.
    Rank 3 has the logits too, unless the schedule is a V.
    """
    one, two = (run(ledger_peak, "gpipe", count)[1] for count in (1, 2))
    for name in SCHEDULES:
        schedule = make_schedule(name, 4, 8)
        part = 1 / schedule.num_chunks
        paper = simulate(schedule, t_F=part, t_B=part, t_W=part).peak_in_flight
        found = [1 + (peak - one) / (two - one) for peak in run(ledger_peak, name, 8)]
        for rank, count in enumerate(paper):
            head = 1.2 if rank == 3 and schedule.placement == "loop" else 1.0
            assert found[rank] == pytest.approx(head * part * count, rel=0.06, abs=0.2), (
                name,
                rank,
                found,
            )


@on_ranks(4)
def test_torchs_w_keeps_more_than_ours(run):
    """The whole graph, and the gradients of its layers' outputs. Rank 3 waits longest."""
    assert run(ledger_peak, "zb_h1", 8, True)[3] > 1.4 * run(ledger_peak, "zb_h1", 8)[3]


def train_three_ways(steps):
    config = GPTConfig(n_layer=12, **SMALL)
    job = dict(steps=steps, batch_size=16, block=8, lr=LR)
    alone = loop.train(GPT(config), Corpus(), **job)
    pipeline = PipelineParallel(GPT(config), one_f_one_b(4, 8))
    layers = [sorted(map(int, stage.blocks)) for stage in pipeline.stages]
    return alone, train(pipeline, Corpus(), **job), layers


@on_ranks(4)
def test_the_training_loop_of_twelve_layers(run):
    results = run(train_three_ways, 5)
    alone = results[0][0]
    assert alone[0] > alone[-1]
    for _, losses, _ in results:
        assert losses == results[0][1]
        assert losses == pytest.approx(alone, abs=FLOAT32["losses"])
    assert [layers for *_, layers in results] == [
        [[0, 1, 2]],
        [[3, 4, 5]],
        [[6, 7, 8]],
        [[9, 10, 11]],
    ]


IGNORED = {"none": 0, "some": 11, "a micro-batch": 16}  # of the first two sequences' 16 targets


def gradients_beside_one_process(name, *, calls=1, tie=False, ignored=0):
    """Largest difference, in gradients and loss, after some calls of step() in a row."""
    world_size = dist.get_world_size()
    schedule = make_schedule(name, world_size, MICRO_BATCHES[world_size])
    config = GPTConfig(n_layer=max(2 * world_size, 3), tie_embeddings=tie, **SMALL)
    alone = GPT(config).double()
    pipeline = PipelineParallel(GPT(config).double(), schedule)
    tokens, targets = Corpus(limit=9999).batch(
        0, micro_batch=2 * schedule.num_micro_batches, block=8
    )
    targets[:2].flatten()[:ignored] = -100
    for _ in range(calls):
        wanted = alone(tokens, targets)
        wanted.backward()
        loss = pipeline.step(tokens, targets)
    theirs = dict(alone.named_parameters(remove_duplicate=False))
    worst = abs(loss - wanted).item() if dist.get_rank() == pipeline.last_rank else 0.0
    for stage in pipeline.stages:
        for key, p in stage.named_parameters():
            worst = max(worst, (p.grad - theirs[key].grad).abs().max().item())
    ends = [s.token_embedding.weight for s in pipeline.stages if s.is_first]
    ends += [s.head.weight for s in pipeline.stages if s.is_last]
    return worst, len({id(end) for end in ends}) < 2 if tie else True


@on_ranks(4)
@pytest.mark.parametrize("name", ["1f1b", "zb_v"])
@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
def test_gradients_add_up_over_calls(run, name, tie):
    """Two calls in a row: only what the second adds may be exchanged between tied copies."""
    for worst, one_matrix in run(gradients_beside_one_process, name, calls=2, tie=tie):
        assert worst < 1e-12
        assert one_matrix, "a rank with both ends has a tied matrix once"


@on_ranks(4)
@pytest.mark.parametrize("ignored", IGNORED)
def test_every_target_counts_the_same(run, ignored):
    """Micro-batches with fewer targets than others, and one with none."""
    results = run(gradients_beside_one_process, "1f1b", ignored=IGNORED[ignored])
    assert max(worst for worst, _ in results) < 1e-12


def targets_all_ignored(name):
    """Loss and largest gradient; one process gives NaN and zeros."""
    pipeline = PipelineParallel(GPT(GPTConfig(n_layer=8, **SMALL)), make_schedule(name, 4, 8))
    tokens = torch.zeros(8, 8, dtype=torch.long)
    loss = pipeline.step(tokens, torch.full_like(tokens, -100))
    largest = max(p.grad.abs().max().item() for p in pipeline.parameters())
    return loss.isnan().item() == (dist.get_rank() == pipeline.last_rank), largest


@on_ranks(4)
def test_a_batch_without_targets_is_nan_and_no_gradient(run):
    for name in ("1f1b", "zb_v"):
        assert run(targets_all_ignored, name) == [(True, 0.0)] * 4


def in_autocast(name):
    """Largest difference of a gradient from one process's, as a part of that gradient's norm."""
    config = GPTConfig(n_layer=8, **SMALL)
    batch = Corpus(limit=9999).batch(0, micro_batch=8, block=8)
    alone, pipeline = GPT(config), PipelineParallel(GPT(config), make_schedule(name, 4, 8))
    with torch.autocast("cpu", torch.bfloat16):
        alone(*batch).backward()
        loss = pipeline.step(*batch)
    theirs = dict(alone.named_parameters())
    worst = max(
        ((p.grad - theirs[key].grad).norm() / theirs[key].grad.norm()).item()
        for stage in pipeline.stages
        for key, p in stage.named_parameters()
    )
    return worst, str(loss.dtype)


@on_ranks(4)
def test_autocast_over_a_pipeline(run):
    """Products in bf16 are rounded to 2**-9, and in another order for each micro-batch; a wrong
    type, share or weight would be off by far more than a twentieth."""
    for name in ("1f1b", "zb_h1"):
        for worst, dtype in run(in_autocast, name):
            assert worst < 0.05
            assert dtype == "torch.float32"


def after_a_failure(name):
    """A step that fails in all ranks before anything is sent, then one that does not."""
    schedule = make_schedule(name, 4, 8)
    config = GPTConfig(n_layer=8, tie_embeddings=True, **SMALL)
    alone, pipeline = GPT(config).double(), PipelineParallel(GPT(config).double(), schedule)
    tokens, targets = Corpus(limit=9999).batch(0, micro_batch=8, block=8)
    alone(tokens, targets).backward()
    receive = pipeline.runtime.mailbox.receive

    def fail(action):
        raise RuntimeError("no message")

    pipeline.runtime.mailbox.receive = fail
    pipeline.workers[0].kept[7] = (tokens, None)  # as a step that got further would leave
    pipeline.workers[0].waiting[7] = []
    with pytest.raises(RuntimeError, match="no message"):
        pipeline.step(tokens, targets)
    left = sum(len(worker.kept) + len(worker.waiting) for worker in pipeline.workers)
    pipeline.runtime.mailbox.receive = receive
    pipeline.zero_grad()
    pipeline.step(tokens, targets)
    theirs = dict(alone.named_parameters(remove_duplicate=False))
    worst = max(
        (p.grad - theirs[key].grad).abs().max().item()
        for stage in pipeline.stages
        for key, p in stage.named_parameters()
    )
    return left, worst


@on_ranks(4)
def test_a_step_that_failed_leaves_nothing_behind(run):
    """Neither activations, nor receives that would take the next step's messages."""
    for name in ("1f1b", "zb_v"):
        for left, worst in run(after_a_failure, name):
            assert left == 0
            assert worst < 1e-12


def test_a_backward_that_failed_defers_nothing_later():
    """B notes products for W. Where it fails, the next BW must multiply at once again."""
    stage = Stage(GPT(GPTConfig(n_layer=3, **SMALL)), range(1, 2))
    worker, x = StageWorker(stage), torch.randn(3, 8, 16)
    worker.forward(0, x)
    with pytest.raises(RuntimeError):
        worker.backward_input(0, torch.ones(1))
    worker.forward(1, x)
    worker.backward(1, torch.ones_like(x))
    assert all(parameter.grad is not None for parameter in stage.parameters())


def norms_in_float32(name):
    """Matrices in bfloat16 beside norms in float32, as one process may have them."""
    alone, ours = (GPT(GPTConfig(n_layer=8, **SMALL)) for _ in range(2))
    pipeline = PipelineParallel(ours, make_schedule(name, 4, 8))
    for model in (alone, pipeline):
        for layer in model.bfloat16().modules():
            if isinstance(layer, torch.nn.LayerNorm):
                layer.float()
    batch = Corpus(limit=9999).batch(0, micro_batch=8, block=8)
    loss = pipeline.step(*batch)
    parts = [half.chunk(8) for half in batch]
    losses = [alone(*part) / 8 for part in zip(*parts, strict=True)]
    for part in losses:
        part.backward()
    theirs = dict(alone.named_parameters())
    # The same sums of the same micro-batches, rounded in the same places
    same = [
        torch.equal(p.grad, theirs[key].grad)
        for stage in pipeline.stages
        for key, p in stage.named_parameters()
    ]
    of_last = dist.get_rank() == pipeline.last_rank
    whole = sum(part.item() for part in losses)
    return all(same), not of_last or loss.item() == pytest.approx(whole, rel=2**-8)


@on_ranks(4)
def test_stages_whose_first_layer_has_another_type(run):
    for name in ("1f1b", "zb_v"):
        assert run(norms_in_float32, name) == [(True, True)] * 4


def returns_another_type():
    class Wide(torch.nn.Module):
        def forward(self, x):
            return x.double()

    pipeline = PipelineParallel(GPT(GPTConfig(n_layer=4, **SMALL)), one_f_one_b(4, 8))
    if dist.get_rank() == 0:
        pipeline.stages[0].blocks["0"] = Wide()
    pipeline.step(*Corpus(limit=9999).batch(0, micro_batch=8, block=8))


@on_ranks(4)
def test_a_block_that_changes_the_type_is_refused_by_name(run):
    said = r"F0 gives \(1, 8, 16\) of torch.float64.* of torch.float32"
    with pytest.raises(RankError, match=said):
        run(returns_another_type)


def without_gradients():
    pipeline = PipelineParallel(
        GPT(GPTConfig(n_layer=4, tie_embeddings=True, **SMALL)), one_f_one_b(4, 8)
    )
    try:
        with torch.no_grad():
            pipeline.step(*Corpus(limit=9999).batch(0, micro_batch=8, block=8))
    except RuntimeError as error:
        return str(error)


@on_ranks(4)
def test_a_step_without_gradients_is_refused(run):
    assert all("outside no_grad()" in said for said in run(without_gradients))


def clipped_beside_one_process(name, tie):
    """How far norm and clipped gradients are from one process's."""
    config = GPTConfig(n_layer=8, tie_embeddings=tie, **SMALL)
    alone, ours = (GPT(config).double() for _ in range(2))
    pipeline = PipelineParallel(ours, make_schedule(name, 4, 8))
    batch = Corpus(limit=9999).batch(0, micro_batch=8, block=8)
    alone(*batch).backward()
    pipeline.step(*batch)
    wanted = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    norm = clip_grad_norm_(pipeline, 0.1)
    theirs = dict(alone.named_parameters(remove_duplicate=False))
    worst = max(
        (p.grad - theirs[key].grad).abs().max().item()
        for stage in pipeline.stages
        for key, p in stage.named_parameters()
    )
    return max((norm - wanted).abs().item(), worst)


@on_ranks(4)
def test_clips_by_the_norm_of_all_stages(run):
    for name in ("1f1b", "zb_v"):
        for tie in (False, True):
            assert max(run(clipped_beside_one_process, name, tie)) < 1e-12


def tied_by_hand(name, transposed=False):
    """Tied without ``tie_embeddings``; and the number of gradients that differ."""
    models = [GPT(GPTConfig(n_layer=8, **SMALL)).double() for _ in range(2)]
    for model in models:
        if transposed:
            matrix = model.token_embedding.weight.detach()
            model.token_embedding.weight = torch.nn.Parameter(matrix.T.contiguous().T)
        model.head.weight = model.token_embedding.weight
    alone, pipeline = models[0], PipelineParallel(models[1], make_schedule(name, 4, 8))
    batch = Corpus(limit=9999).batch(0, micro_batch=8, block=8)
    alone(*batch).backward()
    pipeline.step(*batch)
    theirs = dict(alone.named_parameters(remove_duplicate=False))
    return max(
        (p.grad - theirs[key].grad).abs().max().item()
        for stage in pipeline.stages
        for key, p in stage.named_parameters()
    )


@on_ranks(4)
def test_embeddings_tied_by_hand(run):
    for name in ("1f1b", "zb_v"):
        for transposed in (False, True):
            assert max(run(tied_by_hand, name, transposed)) < 1e-12


def loaded_from_another_rank(name):
    """What is said of the state of the rank before this one."""
    pipeline = PipelineParallel(GPT(GPTConfig(n_layer=8, **SMALL)), make_schedule(name, 4, 8))
    everyone = [None] * 4
    dist.all_gather_object(everyone, pipeline.state_dict())
    pipeline.load_state_dict(everyone[dist.get_rank()])
    try:
        pipeline.load_state_dict(everyone[dist.get_rank() - 1])
    except RuntimeError as error:
        return str(error)
    return ""


@on_ranks(4)
@pytest.mark.parametrize("name", ["1f1b", "zb_v"])
def test_the_names_in_a_state_are_those_of_this_ranks_layers(run, name):
    for said in run(loaded_from_another_rank, name):
        assert "Missing key" in said and "Unexpected key" in said


def in_torch(names):
    config = GPTConfig(n_layer=8, **SMALL)
    job = dict(steps=5, batch_size=16, block=8, lr=LR)
    alone = loop.train(GPT(config), Corpus(), **job)
    found = [
        torch_peer.train(GPT(config), Corpus(), schedule=name, num_micro_batches=8, **job)
        for name in names
    ]
    try:
        torch_peer.TorchPipeline(GPT(GPTConfig(tie_embeddings=True)), "1f1b", 8)
    except ValueError as error:
        return alone, found, str(error)


@on_ranks(4)
def test_torchs_pipeline_trains_the_same(run):
    for alone, found, message in run(in_torch, [*torch_peer.CLASSES]):
        for result in found:
            assert result["losses"] == pytest.approx(alone, abs=FLOAT32["losses"])
            assert len(result["step_seconds"]) == 5
        assert "tie_embeddings=True does not work in torch's pipeline" in message


def in_deepspeed():
    config, batches = GPTConfig(n_layer=8, **SMALL), Corpus()
    alone = loop.train(GPT(config), batches, steps=3, batch_size=16, block=8, lr=LR)
    theirs = torch_peer.DeepSpeedPipeline(GPT(config), 8, batch_size=16, lr=LR)
    steps = (batches.batch(step, micro_batch=16, block=8) for step in range(3))
    losses = [theirs.train_step(*batch).item() for batch in steps]
    held = sum(p.numel() for p in theirs.engine.module.parameters())
    try:
        torch_peer.DeepSpeedPipeline(GPT(config), 3, batch_size=16)
    except ValueError as error:
        return alone, losses, held, str(error)


@on_ranks(4)
def test_deepspeeds_pipeline_trains_the_same(run):
    found = run(in_deepspeed)
    for alone, losses, _, message in found:
        assert losses == pytest.approx(alone, abs=FLOAT32["losses"])
        assert message.startswith("batch_size=16 cannot be cut into 3 equal parts")
    whole = GPT(GPTConfig(n_layer=8, **SMALL)).num_parameters()
    assert sum(held for _, _, held, _ in found) == whole  # each layer in one rank only


def imposed(name, seconds):
    found = run_emulated(name, seconds, 8, repeats=3, shape=(4,))
    order = tuple(action for _, _, action in found.gantt.spans[dist.get_rank()])
    same = order == make_schedule(name, 4, 8).ranks[dist.get_rank()]
    gantts = (found.gantt, found.predicted, found.free)
    return [(gantt.total, gantt.idle_over_total) for gantt in gantts], same


@on_ranks(4)
def test_ranks_that_sleep_take_the_predicted_time(run):
    """Idle shares to 10% of the prediction, or to 5 points of 100: a busy machine wakes up late."""
    for name in ("gpipe", "zb_v"):
        results = run(imposed, name, 0.03)
        assert all(same for _, same in results)
        assert results[0][0] == results[1][0]  # every rank has the whole picture
        (total, idle), (predicted, predicted_idle), (_, free_idle) = results[0][0]
        schedule = make_schedule(name, 4, 8)
        paper = simulate(schedule)
        assert total >= 0.99 * 0.03 / schedule.num_chunks * paper.total
        assert 0.95 * predicted <= total <= 1.3 * predicted
        assert idle == pytest.approx(predicted_idle, rel=0.1, abs=0.05)
        assert free_idle == pytest.approx(paper.idle_over_total, abs=0.1)  # stages sleep longer too


def refused_in_ranks():
    found = []
    for schedule in (
        gpipe(2, 4),
        gpipe(4, 4),
        Schedule.parse(["F0 BW0 F1 BW1"] + ["F0 F1 BW0 BW1"] * 3),
    ):
        try:
            PipelineParallel(GPT(GPTConfig(n_layer=3, **SMALL)), schedule)
        except ValueError as error:
            found.append(str(error))
    pipeline = PipelineParallel(GPT(GPTConfig(n_layer=4, **SMALL)), gpipe(4, 4))
    try:
        pipeline.step(*Corpus(limit=9999).batch(0, micro_batch=6, block=8))
    except ValueError as error:
        found.append(str(error))
    return found


@on_ranks(4)
def test_what_ranks_refuse_they_all_refuse(run):
    for messages in run(refused_in_ranks):
        assert "is for 2 ranks and there are 4" in messages[0]
        assert "3 layers cannot fill 4 stages" in messages[1]
        assert "3 layers cannot fill 4 stages" in messages[2]
        assert "a batch of 6 sequences does not divide into 4 micro-batches" in messages[3]


class SoftGPT(GPT):
    """With a forward of its own: stages would not have it."""

    def forward(self, tokens_BT, targets_BT=None):
        return super().forward(tokens_BT, targets_BT).tanh()


def wrong_batches_and_models():
    """What each refusal says, one after the other: no rank may wait for another."""
    config = GPTConfig(n_layer=4, **SMALL)
    pipeline = PipelineParallel(GPT(config), gpipe(4, 4))
    zeros = torch.zeros(4, 8, dtype=torch.long)
    long = torch.zeros(4, 9, dtype=torch.long)
    batches = [(zeros + 256, zeros), (zeros - 1, zeros), (zeros, zeros + 256), (zeros, zeros - 1)]
    batches += [(long, long), (zeros, zeros[:, :7]), (zeros, zeros.int()), (zeros + 0.0, zeros)]
    batches += [(zeros[:0], zeros[:0])]
    calls = [lambda batch=batch: pipeline.step(*batch) for batch in batches]
    for option in (dict(max_norm=1.0), dict(scale_grad_by_freq=True), dict(sparse=True)):
        model = GPT(config)
        model.token_embedding = torch.nn.Embedding(256, 16, **option)
        calls.append(lambda model=model: PipelineParallel(model, gpipe(4, 4)))
    shared = GPT(config)
    shared.blocks[3].mlp.up = shared.blocks[0].mlp.up
    calls.append(lambda: PipelineParallel(shared, gpipe(4, 4)))
    norm, wrapped, hooked = (GPT(config) for _ in range(3))
    norm.blocks[0].attention_norm = norm.norm
    checkpoint_blocks(wrapped, [2, 2])
    hooked.register_forward_hook(lambda *_: None)
    for model in (norm, wrapped, hooked, SoftGPT(config)):
        calls.append(lambda model=model: PipelineParallel(model, gpipe(4, 4)))
    found = []
    for call in calls:
        try:
            call()
            found.append("nothing was refused")
        except ValueError as error:
            found.append(str(error))
    return found


@on_ranks(4)
def test_wrong_batches_and_models_are_refused_in_every_rank(run):
    wanted = ["tokens has 256", "tokens has -1", "targets has 256", "targets has -1"]
    wanted += ["9 tokens does not fit block_size=8", "(4, 7)", "targets has type torch.int32"]
    wanted += ["tokens has type torch.float32", "a batch of 0", "max_norm=1.0"]
    wanted += ["scale_grad_by_freq=True", "sparse=True", "blocks.3.mlp.up.weight is used in stages"]
    wanted += ["blocks.0.attention_norm.weight is used in stages", "blocks has 2 entries"]
    wanted += ["GPT with hooks", "SoftGPT with a forward() of its own"]
    for messages in run(wrong_batches_and_models):
        for message, words in zip(messages, wanted, strict=True):
            assert words in message


class Standardized(torch.nn.Linear):
    """Computes its weight from another: not the product that B and W divide."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight - self.weight.mean(), self.bias)


def steps_with_standardized(schedule):
    """Losses of two steps of a model, in a pipeline or, without a schedule, in one process."""
    gpt = GPT(GPTConfig(n_layer=4, **SMALL)).double()
    for block in gpt.blocks:
        whole = block.mlp.up
        block.mlp.up = Standardized(whole.in_features, whole.out_features).double()
        block.mlp.up.load_state_dict(whole.state_dict())
    model = PipelineParallel(gpt, schedule) if schedule else gpt
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    tokens, losses = torch.arange(32).view(4, 8), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = model.step(tokens, tokens) if schedule else model(tokens, tokens)
        if not schedule:
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@on_ranks(4)
@pytest.mark.parametrize("schedule", [one_f_one_b(4, 4), zb_h1(4, 4)], ids=lambda s: s.name)
def test_a_layer_with_a_forward_of_its_own_is_not_divided(run, schedule):
    """In float64 equal but for the order of sums; the layer's own forward was dropped by zb_h1."""
    assert run(steps_with_standardized, schedule)[3] == pytest.approx(
        steps_with_standardized(None), abs=1e-12
    )


FAKE = """
import torch, torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline import PipelineParallel
from dlcourse.parallel.pipeline_schedules import zb_h1
dist.init_process_group("fake", rank=3, world_size=64, store=FakeStore())
with torch.device("meta"):
    model = GPT(GPTConfig(n_layer=64, n_head=2, n_embd=32, block_size=8))
with FakeTensorMode(allow_non_fake_inputs=True):
    pipeline = PipelineParallel(model, zb_h1(64, 64)).to_empty(device="cpu")
    tokens = torch.zeros(64, 8, dtype=torch.int64)
    pipeline.step(tokens, tokens)
    torch.optim.AdamW(pipeline.parameters()).step()
assert all(p.grad is not None for p in pipeline.parameters())
print("layers", list(pipeline.stages[0].blocks))
"""


def test_one_rank_of_64_takes_a_step_without_memory():
    done = subprocess.run(
        [sys.executable, "-c", FAKE],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        check=False,
    )
    assert done.stdout.strip() == "layers ['3']", done.stderr[-2000:]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("micro_batches", [8, 16])
def test_the_sliders_picture_says_what_the_formulas_say(ranks, micro_batches):
    from dlcourse.figures.pipeline_parallel import pipeline_picture
    from dlcourse.formulas.bubbles import idle_over_total
    from dlcourse.words.strings import set_language

    set_language("en")
    for schedule, num_chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved_4", 4)):
        picture = pipeline_picture(schedule, ranks, micro_batches, 3)
        promised = idle_over_total(ranks, micro_batches, num_chunks=num_chunks)
        assert f"Idle for {promised:.1%} of the time" in picture.text
    held = [line.split()[-1] for line in pipeline_picture("1f1b", ranks, 8, 2).text.split("\n")]
    assert held[1:] == [str(ranks - rank) for rank in range(ranks)]


def test_a_pattern_writes_actions_as_schedules_do_without_their_numbers():
    from dlcourse.parallel.pipeline_schedules import Action, numbered

    actions = numbered(["F", "F.1", "F", "B.1", "W", "BW"])
    assert " ".join(map(str, actions)) == "F0 F0.1 F1 B0.1 W0.1 BW0"
    assert all(Action.parse(str(action)) == action for action in actions)
