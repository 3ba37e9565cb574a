"""ZeRO in real processes must be the training of one process, with fewer bytes in each rank.

Tolerances. With a world of one nothing is reordered, so everything is bit for bit the same.
Otherwise the sums over the batch are taken in another order: in float64 that moves the last digits
(1e-12 asked for), in float32 gradients by about 1e-7 of their size; Adam divides by the gradient's
own size, so where that is near zero one step may turn a rounding error into a fraction of the
learning rate. Hence parameters are compared to 1% of one step's length, lr = 1e-3.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from contextlib import nullcontext

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dlcourse import Ranks
from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus
from dlcourse.formulas.states import state_bytes
from dlcourse.formulas.traffic import zero_bytes
from dlcourse.measure import Recorder, live_bytes
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.zero import ZeRO1, train
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.parallel.zero_checkpoint import (
    check_checkpoint,
    layout_of,
    load_checkpoint,
    save_checkpoint,
)
from dlcourse.parallel.zero_flat_parameters import split_into_units
from dlcourse.peers import zero as peers
from dlcourse.training import loop
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

STAGES = [ZeRO1, ZeRO2, ZeRO3]
SMALL = dict(block_size=16, n_layer=2, n_head=2, n_embd=32)
LR = 1e-3
EXACT = dict(losses=0.0, gradients=0.0, parameters=0.0, optimizer=0.0)
FLOAT64 = dict(losses=1e-12, gradients=1e-12, parameters=1e-12, optimizer=1e-12)
FLOAT32 = dict(losses=5e-6, gradients=5e-6, parameters=0.01 * LR, optimizer=1e-6)


def on_ranks(*numbers):
    """Run a test on run of these sizes; pytest groups the tests by size, one pool for each."""
    return pytest.mark.parametrize("num_ranks", numbers, scope="module")


@pytest.fixture(scope="module")
def pool(num_ranks):
    with Ranks(num_ranks, default=False) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def run(pool):
    return pool.run


def whole(model):
    """A context in which the model's parameters can be read."""
    return model.gathered() if isinstance(model, ZeRO3) else nullcontext()


def collected(model, of_shard):
    """What belongs to each parameter, put together from all ranks' shards."""
    found = {}
    for flat in model.flats:
        row = torch.empty(flat.shard.numel() * flat.world_size, dtype=flat.shard.dtype)
        all_gather_single(row, of_shard(flat.shard).contiguous())
        found |= zip(flat.parameters, flat.views(row), strict=True)
    return [found[p] for p in model.module.parameters() if p in found]


def largest_difference(ours, theirs):
    differences = [(a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True)]
    return float("inf") if any(map(math.isnan, differences)) else max(differences)


def gpt(dtype=torch.float32, *, tie=False, frozen=(), seed=0, **sizes):
    torch.set_default_dtype(dtype)
    try:
        model = GPT(GPTConfig(**(SMALL | sizes), tie_embeddings=tie), seed=seed)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)))
    return model


def compare_with_one_process(
    stage, *, accumulate=1, steps=5, batch_size=24, options=None, **model_options
):
    """Train the same job in parallel and alone, in each rank; return how far they are apart."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    alone = gpt(**model_options)
    model = stage(gpt(**model_options, seed=rank), **(options or {}))  # only rank 0 has seed 0
    trainable = [p for p in alone.parameters() if p.requires_grad]
    adam_alone = torch.optim.AdamW(alone.parameters(), lr=LR)
    adam = torch.optim.AdamW(model.shards, lr=LR)
    corpus = Corpus(limit=100_000)
    apart = dict.fromkeys(("losses", "gradients", "parameters", "optimizer"), 0.0)

    def note(what, difference):
        apart[what] = max(apart[what], difference)

    for step in range(steps):
        adam_alone.zero_grad()
        adam.zero_grad()
        loss_alone = alone(*corpus.batch(step, micro_batch=batch_size, block=16))
        loss_alone.backward()
        batch = corpus.batch(
            step, rank=rank, world_size=world_size, micro_batch=batch_size // world_size, block=16
        )
        total = torch.zeros_like(loss_alone)
        for part in zip(*(half.chunk(accumulate) for half in batch), strict=True):
            loss = model(*part) / accumulate
            loss.backward()
            total += loss.detach()
        model.sync_gradients()
        dist.all_reduce(total)
        note("losses", abs(total.item() / world_size - loss_alone.item()))
        gradients = collected(model, lambda shard: shard.grad)
        note("gradients", largest_difference(gradients, [p.grad for p in trainable]))
        adam_alone.step()
        adam.step()
        model.sync_parameters()
        with whole(model):
            note("parameters", largest_difference(model.module.parameters(), alone.parameters()))
        for key in ("exp_avg", "exp_avg_sq"):
            state = collected(model, lambda shard, key=key: adam.state[shard][key])
            note(
                "optimizer",
                largest_difference(state, [adam_alone.state[p][key] for p in trainable]),
            )
    return apart


def assert_equal_training(results, *, tolerance):
    for apart in results:
        for what, allowed in tolerance.items():
            assert apart[what] <= allowed, f"{what}: {apart}"


@on_ranks(1, 3, 4)
@pytest.mark.parametrize("stage", STAGES)
class TestEqualsOneProcess:
    def test_float32(self, run, num_ranks, stage):
        results = run(compare_with_one_process, stage)
        assert_equal_training(results, tolerance=EXACT if num_ranks == 1 else FLOAT32)

    def test_float64_tied_and_accumulated(self, run, stage):
        job = dict(dtype=torch.float64, tie=True, accumulate=2)
        results = run(compare_with_one_process, stage, **job)
        assert_equal_training(results, tolerance=FLOAT64)


@on_ranks(3)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "case",
    [
        dict(frozen=("blocks.0", "position_embedding")),
        dict(frozen=("head", "token_embedding"), tie=True),
        dict(frozen=("token_embedding", "position_embedding", "blocks.1.mlp"), accumulate=2),
        dict(n_embd=30, n_layer=3),
        dict(options=dict(units=[])),
    ],
    ids=["frozen", "tied-and-frozen", "frozen-accumulate", "odd-sizes", "one-unit"],
)
def test_variations_equal_one_process(run, stage, case):
    results = run(compare_with_one_process, stage, dtype=torch.float64, **case)
    assert_equal_training(results, tolerance=FLOAT64)


# --- Bytes: kept and sent -----------------------------------------------------------------------


def train_and_stay(stage, mixed):
    """Two steps; what is alive at the end is what a rank keeps between steps."""
    model = stage(gpt(), dtype=torch.bfloat16 if mixed else None)
    optimizer = (MasterAdamW if mixed else torch.optim.AdamW)(model.shards, lr=LR)
    corpus = Corpus(limit=100_000)
    train(model, corpus, steps=2, batch_size=4, block=16, optimizer=optimizer)
    dist.kept = model, optimizer  # until the ledger is read
    return model.module.num_parameters()


def forget():
    del dist.kept
    gc.collect()


@on_ranks(4)
@pytest.mark.parametrize("mixed", [True, False], ids=["mixed", "float32"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_ledger_shows_the_papers_bytes(pool, number, mixed):
    pool.run(gc.collect)  # autograd lets go of hooks one collection later
    pool.run(gc.collect, record=True)
    before = pool.last.memory.ranks  # what earlier tests have left in these ranks
    num_parameters = pool.run(train_and_stay, STAGES[number - 1], mixed, record=True)[0]
    after = pool.last.memory.ranks
    pool.run(forget)
    precision = "master" if mixed else "float32"
    want = state_bytes(num_parameters, precision=precision, world_size=4, stage=number)
    for then, now in zip(before, after, strict=True):
        for category, size in want.items():
            kept = now["end"][category] - then["end"][category]
            # On top: padding, the steps' counters, one NaN for each unit
            assert size <= kept <= size + 120, (category, then["end"], now["end"])


def bytes_on_the_wire(stage):
    model = stage(gpt(n_embd=128, n_layer=3))
    optimizer = torch.optim.AdamW(model.shards, lr=LR)
    job = dict(batch_size=4, block=16, optimizer=optimizer)
    corpus = Corpus(limit=100_000)
    train(model, corpus, steps=1, **job)
    before = wire_counters()
    train(model, corpus, steps=2, **job)
    sent = wire_counters()[0] - before[0]
    return sent / 2 / (4 * model.module.num_parameters())


@on_ranks(4)
@pytest.mark.skipif(wire_counters() is None, reason="no counters of TCP bytes on this system")
@pytest.mark.parametrize(("number", "want"), [(1, 1.5), (2, 1.5), (3, 2.25)])
def test_bytes_on_the_wire(run, number, want):
    assert zero_bytes(1, world_size=4, stage=number) == want
    for sent in run(bytes_on_the_wire, STAGES[number - 1]):
        assert sent == pytest.approx(want, rel=0.01)


def gradients_alive(stage):
    """Whole gradients that exist at once, in models' worth; seen after each block's backward."""
    model = stage(gpt(n_layer=6))
    seen = []

    def look(*_):
        alive = [p.grad for p in model.module.parameters() if p.grad is not None]
        alive += [flat.grad for flat in model.flats if flat.grad is not None and stage is not ZeRO1]
        seen.append(sum(g.numel() for g in alive) / model.module.num_parameters())

    for block in model.module.blocks:
        block.register_full_backward_hook(look)
    model(*Corpus(limit=9999).batch(0, micro_batch=2, block=16)).backward()
    look()
    model.sync_gradients()
    return max(seen)


@on_ranks(4)
def test_stage_2_never_holds_all_gradients(run):
    assert run(gradients_alive, ZeRO1)[0] == 1.0
    assert max(run(gradients_alive, ZeRO2)) < 0.5


def peak_of_a_small_model(stage, **options):
    """Bytes at the highest moment of two steps, one sequence of 16 tokens in each rank."""
    live_bytes()
    with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
        model = stage(GPT(), **options)
        train(model, Corpus(limit=100_000), steps=2, batch_size=4, block=16)
    return sum(recorder.record["memory"]["at_peak"].values())


@on_ranks(4)
def test_a_higher_stage_can_need_more(run):
    """A small model as one unit: whole gradients wait for one message, beside its buffer."""
    one, two, three = (run(peak_of_a_small_model, stage, units=[])[0] for stage in STAGES)
    assert 1.05 * one < two and 1.05 * two < three
    one, two, three = (run(peak_of_a_small_model, stage)[0] for stage in STAGES)
    assert one > 1.05 * two and two > 1.05 * three  # with its blocks as units


# --- Stage 3: parameters come and go ------------------------------------------------------------


def who_is_here(prefetch):
    """While each block computes: which blocks' parameters are here or on the way."""
    model = ZeRO3(gpt(n_layer=3), prefetch=prefetch)
    _, *blocks = model.units
    seen = []
    for block in model.module.blocks:
        block.mlp.register_forward_hook(lambda *_: seen.append([u.is_here for u in blocks]))
        block.mlp.register_full_backward_hook(lambda *_: seen.append([u.is_here for u in blocks]))
    loss = model(*Corpus(limit=9999).batch(0, micro_batch=2, block=16))
    freed = not any(u.is_here for u in model.units)
    nbytes = sum(f.full.untyped_storage().nbytes() for f in model.flats)
    loss.backward()
    model.sync_gradients()
    return seen, freed and nbytes == 0


@on_ranks(3)
def test_only_the_units_at_work_are_here(run):
    x, o = True, False
    for seen, freed in run(who_is_here, False):
        assert seen == [[x, o, o], [o, x, o], [o, o, x], [o, o, x], [o, x, o], [x, o, o]]
        assert freed
    for seen, freed in run(who_is_here, True):
        assert seen == [[x, x, o], [o, x, x], [o, o, x], [o, x, x], [x, x, o], [x, o, o]]
        assert freed


def most_blocks_here():
    """Of three, whenever another one is asked for."""
    model = ZeRO3(gpt(n_layer=3))
    _, *blocks = model.units
    seen = []
    for block in blocks:
        start = block.start
        block.start = lambda start=start: (start(), seen.append(sum(u.is_here for u in blocks)))
    model(*Corpus(limit=9999).batch(0, micro_batch=2, block=16)).backward()
    model.sync_gradients()
    return max(seen)


@on_ranks(3)
def test_a_block_is_free_before_the_next_but_one_is_gathered(run):
    assert run(most_blocks_here) == [2, 2, 2]


def look_at_freed_parameters():
    model = ZeRO3(gpt(seed=dist.get_rank()))
    weight, want = model.module.blocks[0].mlp.up.weight, gpt().blocks[0].mlp.up.weight
    freed = weight.sum().item(), tuple(weight.shape)
    with model.gathered():
        gathered = torch.equal(weight, want)
    return freed, gathered, weight.sum().item()


@on_ranks(3)
def test_a_freed_parameter_reads_as_nan(run):
    for (freed, shape), gathered, again in run(look_at_freed_parameters):
        assert math.isnan(freed) and math.isnan(again)
        assert shape == (128, 32) and gathered


def evaluate_between(stage):
    """Evaluation between forward and backward, and before a step, changes nothing."""
    batch = Corpus(limit=9999).batch(dist.get_rank(), micro_batch=2, block=16)
    gradients = []
    for disturb in (False, True):
        model = stage(gpt())
        loss = model(*batch)
        if disturb:
            with torch.no_grad():
                same = torch.equal(model(*batch), loss)
        loss.backward()
        if disturb:
            with torch.no_grad():
                model(*batch)
        model.sync_gradients()
        gradients.append(collected(model, lambda shard: shard.grad))
    return same, largest_difference(*gradients)


@on_ranks(3)
@pytest.mark.parametrize("stage", STAGES)
def test_evaluation_changes_nothing(run, stage):
    assert run(evaluate_between, stage) == [(True, 0.0)] * 3


class TwoPaths(nn.Module):
    """Two types of parameters, one layer used twice, one that a step may leave out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.twice, self.narrow = nn.Linear(3, 3).double(), nn.Linear(3, 3)
        self.maybe, self.last = nn.Linear(3, 3).double(), nn.Linear(3, 1).double()

    def forward(self, x, use_it):
        x = self.twice(torch.tanh(self.twice(x)))
        x = self.narrow(x.float()).double()
        return self.last(self.maybe(x) if use_it else x).mean()


def train_two_paths(stage):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model, alone = stage(TwoPaths()), TwoPaths()
    x = torch.randn(world_size, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    apart = []
    for users in ([0, 1, 2], [1], []):  # ranks that use the layer
        model(x[rank], rank in users).backward()
        model.sync_gradients()
        alone.zero_grad()
        torch.stack([alone(x[r], r in users) for r in range(world_size)]).mean().backward()
        want = [torch.zeros_like(p) if p.grad is None else p.grad for p in alone.parameters()]
        apart.append(largest_difference(collected(model, lambda shard: shard.grad), want))
    return max(apart)


@on_ranks(3)
@pytest.mark.parametrize("stage", STAGES)
def test_parameters_of_two_types_and_some_unused(run, stage):
    assert max(run(train_two_paths, stage)) < 1e-6  # float32 inside


def freed_after_a_step(stage):
    model = stage(gpt())
    model(*Corpus(limit=9999).batch(0, micro_batch=2, block=16)).backward()
    model.sync_gradients()
    weight = weakref.ref(model.module.head.weight)
    del model
    gc.collect()
    return weight() is None


@on_ranks(3)
@pytest.mark.parametrize("stage", STAGES)
def test_a_model_that_nobody_holds_is_freed(run, stage):
    """In a notebook a cell that is run again makes another one."""
    assert run(freed_after_a_step, stage) == [True] * 3


# --- Mixed precision ----------------------------------------------------------------------------


def mixed_losses():
    """The three stages in bfloat16, and MasterAdamW beside torch's AdamW in float32."""
    corpus, job = Corpus(limit=100_000), dict(steps=5, batch_size=8, block=16)
    losses = []
    for stage in STAGES:
        model = stage(gpt(), dtype=torch.bfloat16)
        losses.append(train(model, corpus, **job, optimizer=MasterAdamW(model.shards, lr=LR)))
    ours, theirs = gpt(), gpt()
    loop.train(ours, corpus, **job, optimizer=MasterAdamW(ours.parameters(), lr=LR))
    full = loop.train(theirs, corpus, **job, lr=LR)
    return losses, largest_difference(ours.parameters(), theirs.parameters()), full


@on_ranks(4)
def test_mixed_precision(run):
    losses, apart, full = run(mixed_losses)[0]
    assert apart < 0.01 * LR
    for stage in losses:
        assert stage == pytest.approx(full, abs=0.04)  # bfloat16 has 8 bits: 0.4% of a loss of 5
        assert stage[-1] < stage[0] - 0.1


# --- Checkpoints --------------------------------------------------------------------------------


def steps_with(model, optimizer, first, last):
    corpus, world_size = Corpus(limit=100_000), dist.get_world_size()
    for step in range(first, last):
        batch = corpus.batch(
            step, rank=dist.get_rank(), world_size=world_size, micro_batch=8 // world_size, block=16
        )
        model(*batch).backward()
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()


def save_after_three_steps(stage, path):
    model = stage(gpt(torch.float64, frozen=("position",)))
    optimizer = torch.optim.AdamW(model.shards, lr=LR)
    steps_with(model, optimizer, 0, 3)
    save_checkpoint(model, optimizer, path)
    steps_with(model, optimizer, 3, 6)
    with whole(model):
        return [p.detach().numpy().copy() for p in model.module.parameters()]


def load_and_go_on(stage, path, **sizes):
    model = stage(gpt(torch.float64, frozen=("position",), seed=9, **sizes))
    optimizer = torch.optim.AdamW(model.shards, lr=LR)
    try:
        load_checkpoint(model, optimizer, path)
    except ValueError as error:
        return str(error)
    steps_with(model, optimizer, 3, 6)
    with whole(model):
        return [p.detach().numpy().copy() for p in model.module.parameters()]


def refusal(path, n_embd):
    """What is wrong with a checkpoint for a model of this width, asked without any rank."""
    assert not dist.is_initialized()
    with torch.device("meta"):
        model = gpt(frozen=("position",), n_embd=n_embd)
    try:
        check_checkpoint(path, layout_of(model))
    except ValueError as error:
        return str(error)


@on_ranks(4)
@pytest.mark.parametrize(("saver", "loader"), [(ZeRO3, ZeRO3), (ZeRO1, ZeRO3), (ZeRO3, ZeRO2)])
def test_saved_by_four_and_loaded_by_two(run, tmp_path, saver, loader):
    saved = run(save_after_three_steps, saver, tmp_path)[0]
    with Ranks(2, default=False) as two:
        loaded = two.run(load_and_go_on, loader, tmp_path)[0]
        other = two.run(load_and_go_on, loader, tmp_path, n_embd=48)
    for a, b in zip(saved, loaded, strict=True):
        assert abs(a - b).max() < 1e-12
    for message in other:
        assert "checkpoint of another model" in message
        assert "(256, 32)" in message and "(256, 48)" in message
    assert refusal(tmp_path, 32) is None
    assert refusal(tmp_path, 48) == other[0]
    file = tmp_path / "rank2.pt"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"rank2.pt .* {size - 100} bytes and should have {size}"):
        check_checkpoint(tmp_path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match=r"has no manifest.json"):
        check_checkpoint(tmp_path)
    for text in (
        '{"bytes": [1], "lay',
        '{"bytes": 7, "layout": []}',
        '{"bytes": [null], "layout": []}',
        '{"bytes": [], "layout": []}',
        '{"bytes": [1], "layout": ["row"]}',
        '{"bytes": [1], "layout": [{"parameters": [["norm.weight", 8]]}]}',
        "[]",
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest.json in .* cannot be read"):
            check_checkpoint(tmp_path)


# --- Bad input ----------------------------------------------------------------------------------


def mistakes():
    def message(make):
        try:
            make()
        except ValueError as error:
            return str(error)

    model = gpt()
    frozen = gpt(frozen=("",))
    used = gpt()
    ZeRO3(used)
    return [
        message(lambda: ZeRO1(frozen)),
        message(lambda: ZeRO2(model, dtype=torch.int8)),
        message(lambda: ZeRO3(model, units=[nn.Linear(1, 1)])),
        message(lambda: ZeRO3(model, units=[model.blocks[0], model.blocks[0].mlp])),
        message(lambda: ZeRO3(used)),
        message(lambda: train(ZeRO2(model), Corpus(), steps=1, batch_size=10)),
        message(lambda: peers.train(model, Corpus(), "FSDP9", steps=1)),
    ]


@on_ranks(3)
def test_mistakes_are_named(run):
    expected = [
        "no trainable parameter",
        "dtype=torch.int8 cannot hold gradients",
        "units holds a Linear that is no part of the GPT",
        "'blocks.0.mlp' and 'blocks.0'",
        "is in a ZeRO3 already",
        "batch_size=10 cannot be split over 3 ranks",
        "library='FSDP9' cannot run here: give one of ZeroRedundancyOptimizer",
    ]
    for messages in run(mistakes):
        for message, words in zip(messages, expected, strict=True):
            assert words in message


def test_formulas():
    """The rows of the paper for 7.5 billion parameters on 64 ranks, in GB of 1e9 bytes."""
    sizes = [
        sum(state_bytes(7.5e9, precision="master", world_size=64, stage=stage).values()) / 1e9
        for stage in range(4)
    ]
    assert sizes == pytest.approx([120, 31.4, 16.6, 1.88], abs=0.05)
    with pytest.raises(ValueError, match="stage=4"):
        state_bytes(1, precision="master", world_size=4, stage=4)
    with pytest.raises(ValueError, match="world_size=0"):
        zero_bytes(1, world_size=0, stage=1)


def test_units():
    model = gpt(tie=True)
    groups = split_into_units(model)
    assert list(groups) == [model, *model.blocks]
    assert sum(len(group) for group in groups.values()) == len(list(model.parameters()))
    assert any(p is model.head.weight for p in groups[model])
    model.blocks[0].extra = model.head  # used in a block and outside of it
    assert any(p is model.head.weight for p in split_into_units(model)[model])


# --- Beside the libraries, and on fake tensors --------------------------------------------------

JOB = dict(steps=5, batch_size=8, block=16, lr=LR)


def same_losses(library):
    theirs = peers.train(gpt(seed=0), Corpus(limit=100_000), library, **JOB)["losses"]
    stage = STAGES[peers.STAGE_OF[library] - 1]
    return theirs, train(stage(gpt(seed=dist.get_rank())), Corpus(limit=100_000), **JOB)


@on_ranks(2)
@pytest.mark.parametrize("library", peers.installed())
def test_libraries_train_the_same(run, library):
    for theirs, ours in run(same_losses, library):
        assert ours == pytest.approx(theirs, abs=FLOAT32["losses"])


def one_fake_step(world_size):
    """In a process of its own; returns bytes by category and bytes of collectives."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    results = []
    for stage in STAGES:
        with FakeTensorMode():
            model = stage(gpt(), dtype=torch.bfloat16)
            optimizer = MasterAdamW(model.shards)
            with Recorder(0, world_size) as recorder:
                tokens = torch.zeros(1, 16, dtype=torch.int64)
                model(tokens, tokens).backward()
                model.sync_gradients()
                optimizer.step()
                model.sync_parameters()
            kept = recorder.record["memory"]["end"]
            sent = [(e["op"], e["bytes"]) for e in recorder.record["comm"]]
        results.append((kept, sent, model.module.num_parameters()))
    dist.destroy_process_group()
    return results


def test_one_rank_of_64_on_fake_tensors():
    for stage, (kept, sent, n) in enumerate(one_fake_step(64), start=1):
        want = state_bytes(n, precision="master", world_size=64, stage=stage)
        for category, size in want.items():
            assert size <= kept[category] <= 1.02 * size + 200, (stage, category, kept)
        gathered, reduced = (
            sum(size for op, size in sent if op == name)
            for name in ("all_gather", "reduce_scatter")
        )
        assert reduced == pytest.approx(2 * n, rel=0.02)
        assert gathered == pytest.approx(2 * n * (2 if stage == 3 else 1), rel=0.02)
