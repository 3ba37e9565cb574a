"""Micro-batches must train as the whole batch does, alone and in ranks.

Tolerances. Accumulation adds the same numbers in another order: in float64 that moves the last
digits (1e-12 asked for), in float32 gradients by about 1e-7 of their size. Adam divides by the
gradient's own size, so one step may turn a rounding error into a fraction of the learning rate:
float32 parameters are compared to 5% of one step's length.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import BucketedDataParallel, NaiveDataParallel, OverlappedDataParallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.training import by_hand, loop
from dlcourse.training.accumulation import (
    IGNORED,
    backward_by_tokens,
    backward_equal,
    split,
    train,
)

pytestmark = pytest.mark.usefixtures("nothing_before")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = dict(block_size=16, n_layer=2, n_head=2, n_embd=32)
WRAPPERS = [
    NaiveDataParallel,
    BucketedDataParallel,
    OverlappedDataParallel,
    DistributedDataParallel,
]
LR = 1e-3
JOB = dict(steps=5, batch_size=24, block=16, lr=LR)


@pytest.fixture(scope="module")
def three():
    with Ranks(3, default=False) as pool:
        yield pool.run


def gpt(dtype=torch.float64, *, tie=False, frozen=(), seed=0):
    model = GPT(GPTConfig(**SMALL, tie_embeddings=tie), seed=seed).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)))
    return model


def corpus():
    return Corpus(limit=100_000)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def gradient(model):
    return flat(p.grad for p in model.parameters() if p.grad is not None)


def error(got, want):
    return ((got - want).norm() / want.norm()).item()


def sync(model):
    getattr(model, "sync_gradients", lambda: None)()


# --- Equal micro-batches ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("accumulate", [1, 4, 24])
def test_alone_it_is_the_training_of_the_whole_batch(dtype, accumulate):
    whole, parts = gpt(dtype), gpt(dtype)
    want = loop.train(whole, corpus(), **JOB)
    got = train(parts, corpus(), accumulate=accumulate, **JOB)
    exact = dtype == torch.float64
    assert got == pytest.approx(want, abs=1e-12 if exact else 5e-6)
    apart = (flat(parts.parameters()) - flat(whole.parameters())).abs().max()
    assert apart <= (1e-11 if exact else 0.05 * LR)
    assert (apart == 0) == (accumulate == 1)  # one part is the whole: bit for bit


def train_in_ranks(wrapper, options):
    alone, ours = gpt(**options), gpt(seed=0, **options)
    want = loop.train(alone, corpus(), **JOB)
    model = wrapper(ours)
    losses = torch.tensor(train(model, corpus(), accumulate=4, **JOB), dtype=torch.float64)
    dist.all_reduce(losses)
    apart = (flat(ours.parameters()) - flat(alone.parameters())).abs().max().item()
    return apart, (
        losses / dist.get_world_size() - torch.tensor(want, dtype=torch.float64)
    ).abs().max().item()


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("options", [dict(tie=True), dict(frozen=("blocks.0",))])
def test_in_ranks_it_is_the_training_of_one_process(three, wrapper, options):
    for apart, losses in three(train_in_ranks, wrapper, options):
        assert apart <= 1e-11
        assert losses <= 1e-12


def bytes_sent(wrapper, accumulate, backward):
    model = wrapper(gpt())
    tokens, targets = corpus().batch(0, micro_batch=4, block=16)
    parts = split(tokens, targets, accumulate=accumulate)
    for _ in range(2):  # DDP's second step lays its buckets out anew, and says so to all ranks
        backward(model, parts)
        sync(model)
    with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
        backward(model, parts)
        sync(model)
    return sum(event["bytes"] for event in recorder.record["comm"])


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradients_are_sent_once_however_many_micro_batches(three, wrapper):
    size = 8 * gpt().num_parameters()
    for accumulate in (1, 4):
        assert three(bytes_sent, wrapper, accumulate, backward_equal) == [size] * 3
    assert three(bytes_sent, wrapper, 4, backward_by_tokens) == [size + 8] * 3  # one count more


# --- Unequal numbers of targets -----------------------------------------------------------------

LENGTHS = [3, 16, 0, 7, 1, 12]  # targets in each sequence; the rest is padding


def padded():
    tokens, targets = corpus().batch(0, micro_batch=len(LENGTHS), block=16)
    for row, length in enumerate(LENGTHS):
        targets[row, length:] = IGNORED
    return tokens, targets


def whole_gradient(dtype=torch.float64):
    model = gpt(dtype)
    tokens, targets = padded()
    loss = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    return gradient(model), loss.item()


@pytest.mark.parametrize("sizes", [[2, 2, 2], [1, 5], [1] * 6])
def test_every_target_counts_the_same(sizes):
    want, loss = whole_gradient()
    model = gpt()
    parts = list(zip(*(half.split(sizes) for half in padded()), strict=True))
    assert backward_by_tokens(model, parts).item() == pytest.approx(loss, abs=1e-12)
    assert error(gradient(model), want) < 1e-12


def test_a_mean_of_means_is_another_gradient():
    want, _ = whole_gradient()
    tokens, targets = padded()
    kept = [0, 1, 3, 5]  # without the sequence that has no target: its mean would be nan
    model = gpt()
    backward_equal(model, split(tokens[kept], targets[kept], accumulate=4))
    assert error(gradient(model), want) > 0.05


def unequal_ranks(wrapper):
    """Ranks with 3, 1 and 1 micro-batches; one of rank 0's and all of rank 2's are padding."""
    tokens, targets = padded()
    mine = [[[0], [1], [2]], [[3, 4, 5]], [[2]]][dist.get_rank()]
    model = wrapper(gpt())
    share = backward_by_tokens(model, [(tokens[rows], targets[rows]) for rows in mine])
    sync(model)
    dist.all_reduce(share)
    return error(gradient(model), whole_gradient()[0]), share.item() / dist.get_world_size()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_target_of_every_rank_counts_the_same(three, wrapper):
    for off, loss in three(unequal_ranks, wrapper):
        assert off < 1e-12
        assert loss == pytest.approx(whole_gradient()[1], abs=1e-12)


def unequal_ranks_of_zero(stage):
    tokens, targets = padded()
    mine = [[[0], [1]], [[3], [4, 5]], [[2], [2]]][dist.get_rank()]
    model = stage(gpt())
    parts = [(tokens[rows], targets[rows]) for rows in mine]
    with pytest.raises(ValueError, match="micro-batches here, and the ranks have 1 to 2: ZeRO"):
        backward_by_tokens(model, parts[dist.get_rank() % 2 :])
    backward_by_tokens(model, parts)
    model.sync_gradients()
    rows = []
    for flat_parameters in model.flats:
        pieces = [torch.empty_like(flat_parameters.shard) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, flat_parameters.shard.grad.contiguous())
        row = torch.cat(pieces)
        rows += zip(flat_parameters.parameters, flat_parameters.views(row), strict=True)
    found = dict(rows)
    return error(flat(found[p] for p in model.module.parameters()), whole_gradient()[0])


@pytest.mark.parametrize("stage", [ZeRO1, ZeRO2])
def test_every_target_counts_the_same_under_zero(three, stage):
    assert max(three(unequal_ranks_of_zero, stage)) < 1e-12


# --- Memory -------------------------------------------------------------------------------------


def peaks(accumulate):
    """Largest bytes of activations and of gradients in the second of two steps."""
    model = gpt(torch.float32)
    train(model, corpus(), accumulate=accumulate, **JOB | dict(steps=1))
    with Recorder(0, 1) as recorder:
        train(model, corpus(), accumulate=accumulate, **JOB | dict(steps=1))
    return recorder.record["memory"]["peaks"], 4 * model.num_parameters()


def test_activations_shrink_with_the_micro_batch_and_gradients_do_not():
    (whole, size), (parts, _) = peaks(1), peaks(4)
    assert parts["activations"] == pytest.approx(whole["activations"] / 4, rel=0.05)
    assert parts["gradients"] == whole["gradients"] == size


# --- Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [0, -1, 5, 128])
def test_steps_that_do_not_divide_the_batch(accumulate):
    tokens = torch.zeros(64, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=rf"accumulate={accumulate} .*\b64\b.* 1, 2, 4, 8, 16"):
        split(tokens, tokens, accumulate=accumulate)
    with pytest.raises(ValueError, match=rf"accumulate={accumulate}\b"):
        train(gpt(), corpus(), **JOB | dict(batch_size=64), accumulate=accumulate)


def test_nothing_to_learn_from():
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match="0 targets in 1 micro-batches"):
        backward_by_tokens(gpt(), [(tokens, torch.full_like(tokens, IGNORED))])
    for backward in (backward_equal, backward_by_tokens):
        with pytest.raises(ValueError, match="0 micro-batches"):
            backward(gpt(), [])


def refuse():
    tokens = torch.zeros(2, 8, dtype=torch.int64)
    try:
        backward_by_tokens(NaiveDataParallel(gpt()), [(tokens, torch.full_like(tokens, IGNORED))])
    except ValueError as refused:
        return str(refused)


def test_nothing_to_learn_from_in_any_rank(three):
    assert all("0 targets in 1 micro-batches" in text for text in three(refuse))


# --- On fake tensors ----------------------------------------------------------------------------


def one_fake_step():
    """In a process of its own: rank 0 of 64 takes a step in four micro-batches."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=64)
    with FakeTensorMode():
        model = OverlappedDataParallel(GPT(GPTConfig(**SMALL)))
        optimizer = torch.optim.AdamW(model.parameters())
        tokens = torch.zeros(8, 16, dtype=torch.int64)
        with Recorder(0, 64) as recorder:
            backward_equal(model, split(tokens, tokens, accumulate=4))
            model.sync_gradients()
            optimizer.step()
    sent = sum(event["bytes"] for event in recorder.record["comm"])
    return sent, recorder.record["memory"]["peaks"]["gradients"], model.module.num_parameters()


def test_one_rank_of_64_on_fake_tensors():
    with Ranks(1, default=False) as ranks:
        [(sent, gradients, n)] = ranks.run(one_fake_step)
    assert sent == 4 * n
    assert gradients >= 4 * n


def test_a_micro_batch_without_a_target_has_no_mean():
    tokens, targets = padded()
    model = gpt()
    for parts in (
        split(tokens, targets, accumulate=6),
        split(tokens[:0], targets[:0], accumulate=1),
    ):
        with pytest.raises(
            ValueError, match=r"micro-batch \d of \d has 0 targets.*backward_by_tokens"
        ):
            backward_equal(model, parts)
    assert all(p.grad is None for p in model.parameters())


def test_means_of_different_numbers_of_targets_are_not_averaged():
    tokens = torch.zeros(4, 8, dtype=torch.int64)
    targets = tokens.clone()
    targets[0, :3] = IGNORED
    model = gpt()
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(ValueError, match=r"micro-batches have \[13, 16\].*backward_by_tokens"):
        by_hand.take_step(model, optimizer, (tokens, targets), accumulate=2)
    assert all(p.grad is None for p in model.parameters())


def loops_for_other_models():
    said = []
    for model, loop_of in (
        (ZeRO1(gpt()), train),
        (ZeRO1(gpt()), loop.train),
        (BucketedDataParallel(gpt()), loop.train),
    ):
        try:
            loop_of(model, corpus(), **JOB)
        except ValueError as refused:
            said.append(str(refused))
    return said


def test_a_loop_refuses_a_model_that_needs_another_one(three):
    for said in three(loops_for_other_models):
        assert len(said) == 3
        assert "use dlcourse.parallel.zero.train" in said[0]
        assert "ZeRO1, and this loop is for one process" in said[1]
        assert "use train of dlcourse.parallel.data" in said[2]
