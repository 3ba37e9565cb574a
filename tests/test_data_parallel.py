"""Data parallelism in real processes must be the training of one process.

Tolerances. With a world of one nothing is reordered, so everything is bit for bit the same. With
two ranks a sum has only one order and halving is exact, so all variants and DDP agree bit for bit.
Otherwise the sums over the batch are taken in another order: in float64 that moves the last digits
(1e-12 asked for), in float32 gradients by about 1e-7 of their size; Adam divides by the gradient's
own size, so where that is near zero one step may turn a rounding error into a fraction of the
learning rate. Hence parameters are compared to 5% of one step's length, lr = 1e-3.
"""

from __future__ import annotations

import contextlib
import gc
import math
import sys
import weakref
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlcourse import RankError, Ranks
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.moe import MoE
from dlcourse.parallel.context import ring_attention, split_sequence
from dlcourse.parallel.data import (
    BucketedDataParallel,
    NaiveDataParallel,
    OverlappedDataParallel,
    train,
)
from dlcourse.parallel.data_buckets import make_buckets
from dlcourse.parallel.expert import expert_parallel
from dlcourse.parallel.pipeline import PipelineParallel
from dlcourse.parallel.pipeline_schedules import gpipe
from dlcourse.parallel.replicas import broadcast_module, loss_weight, replica_drift
from dlcourse.parallel.sendable import overlaps
from dlcourse.parallel.sequence import sequence_parallel
from dlcourse.parallel.tensor import tensor_parallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.peers import ddp as ddp_peer
from dlcourse.training import loop
from dlcourse.training.sharding_offload.local_host import LocalHost
from dlcourse.training.sharding_offload.optimizer_offload import OptimizerOffload

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

WRAPPERS = [NaiveDataParallel, BucketedDataParallel, OverlappedDataParallel]
SMALL = dict(block_size=16, n_layer=2, n_head=2, n_embd=32)
SMALL_BUCKETS = dict(bucket_cap_mb=0.02, first_bucket_mb=0.005)  # several, of several parameters
LR = 1e-3


def on_ranks(*numbers):
    """Run a test on run of these sizes; pytest groups the tests by size, one pool for each."""
    return pytest.mark.parametrize("num_ranks", numbers, scope="module")


@pytest.fixture(scope="module")
def run(num_ranks):
    with Ranks(num_ranks) as pool:
        yield pool.run


def wrap(wrapper, module, **options):
    if wrapper is NaiveDataParallel:
        return wrapper(module)
    return wrapper(module, **(SMALL_BUCKETS | options))


def largest_difference(ours, theirs):
    """Over two lists of tensors; a tensor that only one side has differs without limit."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if (a is None) != (b is None):
            return float("inf")
        if a is not None and a.numel():
            worst = max(worst, (a - b).abs().max().item())
    return worst


def gradients(model):
    return [parameter.grad for parameter in model.parameters()]


def adam_state(optimizer, model):
    state = [optimizer.state.get(parameter, {}) for parameter in model.parameters()]
    return [s.get(key) for s in state for key in ("step", "exp_avg", "exp_avg_sq")]


def compare_with_one_process(
    wrapper,
    *,
    dtype=torch.float32,
    tie=False,
    frozen=(),
    accumulate=1,
    set_to_none=True,
    steps=5,
    batch_size=24,
    **options,
):
    """Train the same job in parallel and alone, in each rank; return how far they are apart."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    torch.set_default_dtype(dtype)
    try:
        config = GPTConfig(**SMALL, tie_embeddings=tie)
        alone, ours = GPT(config, seed=0), GPT(config, seed=rank)  # only rank 0 starts from seed 0
    finally:
        torch.set_default_dtype(torch.float32)
    for model in (alone, ours):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))
    parallel = wrap(wrapper, ours, **options)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=LR) for model in (alone, ours)]
    corpus = Corpus(limit=100_000)
    apart = dict.fromkeys(("losses", "gradients", "parameters", "optimizer", "drift"), 0.0)

    def note(what, difference):
        apart[what] = max(apart[what], difference)

    for step in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)
        loss_alone = alone(*corpus.batch(step, micro_batch=batch_size, block=16))
        loss_alone.backward()
        batch = corpus.batch(
            step, rank=rank, world_size=world_size, micro_batch=batch_size // world_size, block=16
        )
        total = torch.zeros((), dtype=dtype)
        parts = list(zip(*(half.chunk(accumulate) for half in batch), strict=True))
        for tokens, targets in parts[:-1]:
            with parallel.no_sync():
                loss = parallel(tokens, targets) / accumulate
                loss.backward()
            total += loss.detach()
        loss = parallel(*parts[-1]) / accumulate
        loss.backward()
        total += loss.detach()
        parallel.sync_gradients()
        dist.all_reduce(total)
        note("losses", abs(total.item() / world_size - loss_alone.item()))
        note("gradients", largest_difference(gradients(ours), gradients(alone)))
        for optimizer in optimizers:
            optimizer.step()
        note("parameters", largest_difference(list(ours.parameters()), list(alone.parameters())))
        note(
            "optimizer",
            largest_difference(adam_state(optimizers[1], ours), adam_state(optimizers[0], alone)),
        )
        note("drift", replica_drift(ours))
    return apart


def assert_equal_training(results, *, tolerance):
    for apart in results:
        assert apart["drift"] == 0.0, "the replicas are not identical"
        for what in ("losses", "gradients", "parameters", "optimizer"):
            assert apart[what] <= tolerance[what], f"{what}: {apart}"


EXACT = dict(losses=0.0, gradients=0.0, parameters=0.0, optimizer=0.0)
FLOAT64 = dict(losses=1e-12, gradients=1e-12, parameters=1e-12, optimizer=1e-12)
FLOAT32 = dict(losses=5e-6, gradients=5e-6, parameters=0.01 * LR, optimizer=1e-6)


@on_ranks(1, 2, 3, 4)
@pytest.mark.parametrize("wrapper", WRAPPERS)
class TestEqualsOneProcess:
    def test_float32(self, run, num_ranks, wrapper):
        results = run(compare_with_one_process, wrapper)
        assert_equal_training(results, tolerance=EXACT if num_ranks == 1 else FLOAT32)

    def test_float64(self, run, wrapper):
        results = run(compare_with_one_process, wrapper, dtype=torch.float64)
        assert_equal_training(results, tolerance=FLOAT64)


@on_ranks(3)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "case",
    [
        dict(tie=True),
        dict(frozen=("blocks.0", "position_embedding")),
        dict(frozen=("head", "token_embedding"), tie=True),
        dict(accumulate=2),
        dict(accumulate=2, set_to_none=False),
    ],
    ids=["tied", "frozen", "tied-and-frozen", "accumulate", "accumulate-keep-gradients"],
)
def test_variations_equal_one_process(run, wrapper, case):
    results = run(compare_with_one_process, wrapper, dtype=torch.float64, steps=2, **case)
    assert_equal_training(results, tolerance=FLOAT64)


def gradients_of_all_variants():
    """Three steps of the same training in each variant and in DDP; all gradients of all steps."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    corpus = Corpus(limit=100_000)
    found = []
    for wrapper in [*WRAPPERS, DistributedDataParallel]:
        gpt = GPT(GPTConfig(**SMALL, tie_embeddings=True), seed=rank)
        model = wrapper(gpt) if wrapper is DistributedDataParallel else wrap(wrapper, gpt)
        optimizer = torch.optim.AdamW(gpt.parameters(), lr=LR)
        found.append([])
        for step in range(3):
            optimizer.zero_grad()
            model(*corpus.batch(step, rank=rank, world_size=world_size, block=16)).backward()
            if wrapper is not DistributedDataParallel:
                model.sync_gradients()
            found[-1] += [gradient.clone() for gradient in gradients(gpt)]
            optimizer.step()
    return [largest_difference(found[-1], ours) for ours in found[:-1]]


@on_ranks(2, 4)
def test_all_variants_and_ddp_have_the_same_gradients(run, num_ranks):
    tolerance = 0.0 if num_ranks == 2 else FLOAT32["gradients"]
    for apart in run(gradients_of_all_variants):
        assert max(apart) <= tolerance, apart


# --- What is sent, and when ---------------------------------------------------------------------


class Events:
    """Notes every all-reduce (its bytes) as it starts, and then does it."""

    def __enter__(self):
        self.log, self.real = [], dist.all_reduce
        dist.all_reduce = self
        return self.log

    def __call__(self, tensor, *args, **kwargs):
        self.log.append(tensor.nbytes)
        return self.real(tensor, *args, **kwargs)

    def __exit__(self, *_):
        dist.all_reduce = self.real


def log_of_one_step(wrapper, *, accumulate=1, frozen=(), **options):
    gpt = GPT(GPTConfig(**SMALL))
    for name, parameter in gpt.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen)))
    model = wrap(wrapper, gpt, **options)
    tokens, targets = Corpus(limit=100_000).batch(0, block=16)
    with Events() as log:
        for i in range(accumulate):
            if i < accumulate - 1:
                with model.no_sync():
                    model(tokens, targets).backward()
            else:
                model(tokens, targets).backward()
            log.append("backward done")
        model.sync_gradients()
    return log, [p.nbytes for p in gpt.parameters() if p.requires_grad]


@on_ranks(2)
def test_naive_sends_each_parameter_once_after_backward(run):
    for log, sizes in run(log_of_one_step, NaiveDataParallel):
        assert log == ["backward done", *sizes]


@on_ranks(2)
@pytest.mark.parametrize("wrapper", [BucketedDataParallel, OverlappedDataParallel])
def test_buckets_send_every_byte_once_in_few_messages(run, wrapper):
    for log, sizes in run(log_of_one_step, wrapper):
        messages = [entry for entry in log if entry != "backward done"]
        assert sum(messages) == sum(sizes)
        assert 4 <= len(messages) < len(sizes) / 2
        caps = [SMALL_BUCKETS["first_bucket_mb"]] + [SMALL_BUCKETS["bucket_cap_mb"]] * 99
        for message, cap in zip(messages[:-1], caps, strict=False):
            assert cap * 2**20 <= message < cap * 2**20 + max(sizes)


@on_ranks(2)
def test_a_large_cap_gives_one_message(run):
    for log, sizes in run(log_of_one_step, BucketedDataParallel, first_bucket_mb=25):
        assert log == ["backward done", sum(sizes)]


@on_ranks(2)
def test_a_cap_of_zero_gives_a_message_for_each_parameter_last_first(run):
    zero = dict(first_bucket_mb=0, bucket_cap_mb=0)
    for log, sizes in run(log_of_one_step, BucketedDataParallel, **zero):
        assert log == ["backward done", *reversed(sizes)]


@on_ranks(2)
def test_overlapped_sends_during_backward_and_bucketed_after(run):
    for log, _ in run(log_of_one_step, OverlappedDataParallel):
        assert log[-1] == "backward done"
        assert len(log) > 4
    for log, _ in run(log_of_one_step, BucketedDataParallel):
        assert log[0] == "backward done"


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_accumulation_sends_once(run, wrapper):
    once, thrice = (
        run(log_of_one_step, wrapper, accumulate=accumulate)[0][0] for accumulate in (1, 3)
    )
    sent_once = [entry for entry in once if entry != "backward done"]
    assert [entry for entry in thrice if entry != "backward done"] == sent_once
    assert thrice[:2] == ["backward done"] * 2  # nothing leaves during the first two


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_frozen_parameters_are_not_sent(run, wrapper):
    log, sizes = run(log_of_one_step, wrapper, frozen=("blocks", "token"))[0]
    assert sum(entry for entry in log if entry != "backward done") == sum(sizes)
    assert len(sizes) == 4  # position embedding, norm (2), head


@on_ranks(2)
def test_nothing_is_lost_where_all_backwards_are_in_no_sync(run):
    def last_one_too():
        model = wrap(OverlappedDataParallel, GPT(GPTConfig(**SMALL)))
        with Events() as log:
            with model.no_sync():
                model(
                    *Corpus(limit=9999).batch(0, rank=dist.get_rank(), world_size=2, block=16)
                ).backward()
            assert not log
            model.sync_gradients()
        alone = GPT(GPTConfig(**SMALL))
        alone(*Corpus(limit=9999).batch(0, micro_batch=8, block=16)).backward()
        return largest_difference(gradients(model), gradients(alone))

    assert max(run(last_one_too)) < FLOAT32["gradients"]


@on_ranks(2)
def test_a_module_wrapped_again(run):
    """A cell that wraps the same model is run twice; the first wrapper's hooks are still there."""

    def wrapped_again(first, second):
        rank, corpus = dist.get_rank(), Corpus(limit=9999)
        gpt, alone = GPT(GPTConfig(**SMALL)).double(), GPT(GPTConfig(**SMALL)).double()
        apart = []
        for wrapper in (first, second):
            model = wrap(wrapper, gpt)
            for step in range(2):
                for module in (gpt, alone):
                    module.zero_grad()
                model(*corpus.batch(step, rank=rank, world_size=2, block=16)).backward()
                model.sync_gradients()
                alone(*corpus.batch(step, micro_batch=8, block=16)).backward()
                apart.append(largest_difference(gradients(gpt), gradients(alone)))
        return max(apart)

    for second in WRAPPERS:
        assert max(run(wrapped_again, OverlappedDataParallel, second)) < FLOAT64["gradients"]


@on_ranks(2)
def test_evaluation_between_forward_and_backward_changes_nothing(run):
    def evaluate_between():
        model = wrap(OverlappedDataParallel, GPT(GPTConfig(**SMALL)))
        batch = Corpus(limit=9999).batch(0, block=16)
        with Events() as log:
            loss = model(*batch)
            with torch.no_grad(), model.no_sync():
                model(*batch)
            loss.backward()
        return len(log)

    assert min(run(evaluate_between)) > 4


# --- Parameters that a step does not use, uses twice, or holds in other types ------------------


class TwoPaths(nn.Module):
    """Takes one of two layers, and one layer always; "neither" leaves both unused."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.left, self.right, self.last = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x, path):
        if path == "both":  # the other way round than the order of the parameters
            return self.last(self.left(self.right(x))).mean()
        return self.last(x if path == "neither" else getattr(self, path)(x)).mean()


def train_two_paths(wrapper, paths, **options):
    """paths[step][rank]; beside it one process with the mean of all ranks' losses."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ours, alone = TwoPaths(seed=rank).double(), TwoPaths(seed=0).double()
    model = wrap(wrapper, ours, **options)
    inputs = torch.randn(world_size, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    apart, has_gradient = [], []
    optimizers = [torch.optim.AdamW(m.parameters(), lr=LR) for m in (ours, alone)]
    for path_of_rank in paths:
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(inputs[rank], path_of_rank[rank]).backward()
        model.sync_gradients()
        all_losses = [alone(x, path) for x, path in zip(inputs, path_of_rank, strict=True)]
        torch.stack(all_losses).mean().backward()
        apart.append(largest_difference(gradients(ours), gradients(alone)))
        has_gradient.append([name for name, p in ours.named_parameters() if p.grad is not None])
        for optimizer in optimizers:
            optimizer.step()
        apart.append(largest_difference(list(ours.parameters()), list(alone.parameters())))
        apart.append(
            largest_difference(adam_state(optimizers[1], alone), adam_state(optimizers[0], ours))
        )
    return apart, has_gradient


ONE_BUCKET_EACH = dict(first_bucket_mb=0, bucket_cap_mb=0)


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_parameters_used_in_some_ranks_only(run, wrapper):
    """Ranks fill their buckets in different orders, and some never. It must not hang or mix up."""
    paths = [("left", "right"), ("both", "left"), ("right", "both"), ("both", "neither")]
    for apart, _ in run(train_two_paths, wrapper, paths, **ONE_BUCKET_EACH):
        assert max(apart) <= 1e-12, apart


@on_ranks(3)
@pytest.mark.parametrize("wrapper", [BucketedDataParallel, OverlappedDataParallel])
@pytest.mark.parametrize("buckets", [ONE_BUCKET_EACH, dict(first_bucket_mb=25)])
def test_parameters_that_no_rank_used(run, wrapper, buckets):
    """One process skips them in the optimizer: no momentum, no weight decay. So must we."""
    paths = [("both",) * 3, ("right",) * 3, ("neither",) * 3, ("left", "neither", "left")]
    exact = dict(find_unused_parameters=True, **buckets)
    for apart, has_gradient in run(train_two_paths, wrapper, paths, **exact):
        assert max(apart) <= 1e-12, apart
        assert has_gradient[1] == ["right.weight", "right.bias", "last.weight", "last.bias"]
    for apart, has_gradient in run(train_two_paths, wrapper, paths, **buckets):
        assert len(has_gradient[1]) == 6  # zeros, as documented
        assert apart[0] <= 1e-12
        assert apart[3] == float("inf")


class Mixture(nn.Module):
    """One layer used twice, parameters of two types in turn, and buffers of three."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.used_twice = nn.Linear(4, 4, dtype=torch.float64)
        self.float32 = nn.Linear(4, 4)
        self.float64 = nn.Linear(4, 4, dtype=torch.float64)
        self.also_float32 = nn.Linear(4, 1)
        self.register_buffer("mean", torch.full((3,), float(seed)))
        self.register_buffer("count", torch.tensor(seed))
        self.register_buffer("mask", torch.tensor([seed == 0, True]))

    def forward(self, x):
        x = self.used_twice(torch.tanh(self.used_twice(x)))
        x = self.float64(torch.tanh(self.float32(x.float())).double())
        return self.also_float32(x.float()).square().mean()


def train_mixture(wrapper, **options):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    ours, alone = Mixture(seed=rank), Mixture(seed=0)
    model = wrap(wrapper, ours, **options)
    inputs = torch.randn(world_size, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    model(inputs[rank]).backward()
    model.sync_gradients()
    torch.stack([alone(x) for x in inputs]).mean().backward()
    types = [p.grad.dtype == p.dtype for p in ours.parameters()]
    buffers = [ours.mean.tolist(), ours.count.item(), ours.mask.tolist()]
    return largest_difference(gradients(ours), gradients(alone)), all(types), buffers


@on_ranks(3)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("buckets", [dict(), ONE_BUCKET_EACH, dict(first_bucket_mb=25)])
def test_used_twice_several_types_and_buffers(run, wrapper, buckets):
    for apart, same_types, buffers in run(train_mixture, wrapper, **buckets):
        assert apart < 1e-6  # float32 inside
        assert same_types
        assert buffers == [[0.0, 0.0, 0.0], 0, [True, True]]


def test_buckets_are_in_the_order_in_which_they_fill():
    """Also with several types; else a bucket that fills last would hold up the others."""
    parameters = [
        nn.Parameter(torch.zeros(10, dtype=dtype))
        for dtype in [torch.float64, torch.float32, torch.float32, torch.float32, torch.float64]
    ]
    buckets = make_buckets(parameters, first_bucket_mb=1, bucket_cap_mb=40 / 2**20)
    order = [[id(p) for p in bucket.parameters] for bucket in buckets]
    a, b, c, d, e = map(id, parameters)
    assert order == [[d], [c], [b], [e, a]]
    assert make_buckets([], first_bucket_mb=1, bucket_cap_mb=1) == []


def test_bad_bucket_size():
    for name in ("bucket_cap_mb", "first_bucket_mb"):
        for value in (-1, float("nan")):
            sizes = dict(bucket_cap_mb=1, first_bucket_mb=1) | {name: value}
            with pytest.raises(ValueError, match=f"{name}={value} is not allowed"):
                make_buckets([], **sizes)


# --- Unequal batches, groups, drift, mistakes ---------------------------------------------------


def train_unequal(wrapper, weighted):
    """Rank r has r + 1 sequences of the same batch of 10."""
    rank = dist.get_rank()
    tokens, targets = Corpus(limit=9999).batch(0, micro_batch=10, block=16)
    mine = slice(rank * (rank + 1) // 2, (rank + 1) * (rank + 2) // 2)
    model, alone = wrap(wrapper, GPT(GPTConfig(**SMALL), seed=rank)), GPT(GPTConfig(**SMALL))
    weight = loss_weight(targets[mine].numel()) if weighted else 1.0
    (model(tokens[mine], targets[mine]) * weight).backward()
    model.sync_gradients()
    alone(tokens, targets).backward()
    return weight, largest_difference(gradients(model), gradients(alone))


@on_ranks(4)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_unequal_batches_need_weights(run, wrapper):
    results = run(train_unequal, wrapper, weighted=True)
    assert [weight for weight, _ in results] == pytest.approx([0.4, 0.8, 1.2, 1.6])
    assert max(apart for _, apart in results) < FLOAT32["gradients"]
    for _, apart in run(train_unequal, wrapper, weighted=False):
        assert apart > 100 * FLOAT32["gradients"]  # a mean of means is not the mean


def from_outside_of_a_group():
    """What each call says to the last rank, which is not in the group of the first."""
    group = dist.new_group([0])
    if dist.get_rank() == 0:
        return []
    model, moe = GPT(GPTConfig(**SMALL)), MoE(32, num_experts=4, top_k=1, hidden=8)
    x = torch.ones(1, 8, 4)
    said = []
    for call in (
        *(partial(wrapper, model) for wrapper in (*WRAPPERS, ZeRO1, ZeRO2, ZeRO3)),
        partial(tensor_parallel, model),
        partial(sequence_parallel, model),
        partial(expert_parallel, moe),
        partial(PipelineParallel, model, gpipe(1, 2)),
        partial(loss_weight, 4),
        partial(replica_drift, model),
    ):
        try:
            call(process_group=group)
        except ValueError as error:
            said.append(str(error))
    for call in (split_sequence, lambda x, group: ring_attention(x, x, x, group)):
        try:
            call(x, group)
        except ValueError as error:
            said.append(str(error))
    return said


@on_ranks(2)
def test_a_rank_outside_of_the_group_is_told_so(run):
    said = run(from_outside_of_a_group)[1]
    assert len(said) == 14
    assert len({*said}) == 1 and "group does not contain rank 1: only its own ranks" in said[0]


def gradients_in_two_groups(wrapper):
    rank = dist.get_rank()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, float(rank))
    model = wrapper(layer, process_group=groups[rank // 2])
    model(torch.tensor([[float(10**rank)]])).sum().backward()
    model.sync_gradients()
    drift_inside = replica_drift(model, process_group=groups[rank // 2])
    weight = loss_weight(rank, process_group=groups[rank // 2])
    return layer.weight.item(), layer.weight.grad.item(), drift_inside, weight


@on_ranks(4)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_group_of_some_ranks(run, wrapper):
    results = run(gradients_in_two_groups, wrapper)
    assert results == [
        (0.0, 5.5, 0.0, 0.0),
        (0.0, 5.5, 0.0, 2.0),
        (2.0, 550.0, 0.0, pytest.approx(0.8)),
        (2.0, 550.0, 0.0, pytest.approx(1.2)),
    ]


@on_ranks(3)
def test_drift_is_found(run):
    def drift():
        model = NaiveDataParallel(GPT(GPTConfig(**SMALL), seed=dist.get_rank()))
        before = replica_drift(model)
        with torch.no_grad():
            model.module.norm.bias[3] += 0.25 * (dist.get_rank() == 1)
        return before, replica_drift(model)

    assert run(drift) == [(0.0, 0.25)] * 3


@on_ranks(3)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_models_of_different_shapes_are_refused_in_every_rank(run, wrapper):
    def different():
        width = 48 if dist.get_rank() == 1 else 32
        try:
            wrap(wrapper, GPT(GPTConfig(**SMALL | dict(n_embd=width))))
        except ValueError as error:
            return str(error)

    for message in run(different):
        assert "module differs between ranks" in message
        assert "in ranks [1] are not those in rank 0" in message


@on_ranks(2)
def test_two_backwards_without_sync(run):
    def twice():
        model = wrap(OverlappedDataParallel, GPT(GPTConfig(**SMALL)))
        batch = Corpus(limit=9999).batch(0, block=16)
        model(*batch).backward()
        try:
            model(*batch).backward()
        except RuntimeError as error:
            return str(error)

    for message in run(twice):
        assert "backward ran twice without sync_gradients()" in message


def freed_after_a_step(wrapper):
    model = wrap(wrapper, GPT(GPTConfig(**SMALL)))
    model(*Corpus(limit=9999).batch(0, block=16)).backward()
    model.sync_gradients()
    weight = weakref.ref(model.module.head.weight)
    del model
    gc.collect()
    return weight() is None


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_model_that_nobody_holds_is_freed(run, wrapper):
    """In a notebook a cell that is run again makes another one."""
    assert run(freed_after_a_step, wrapper) == [True, True]


# --- Tensors of any kind ------------------------------------------------------------------------

VIEWS = {
    "columns": lambda x: x[:, :4],
    "transposed": lambda x: x.t(),
    "every second row": lambda x: x[::2],
    "expanded": lambda x: x[:, :1].expand(4, 6),
    "windows": lambda x: x.flatten().unfold(0, 4, 2),  # neighbours share two elements
}


def of_rank(rank):
    return 100.0 * rank + torch.arange(32.0).view(4, 8)


class Weighted(nn.Module):
    """A parameter (or a buffer, where frozen) that is a view of a larger tensor."""

    def __init__(self, kind, *, trained=True):
        super().__init__()
        self.whole = [of_rank(dist.get_rank())]  # in a list: not registered
        view = VIEWS[kind](self.whole[0])
        if trained:
            self.weight = nn.Parameter(view)
        else:
            self.bias = nn.Parameter(torch.zeros(()))
            self.register_buffer("weight", view)

    def forward(self, x):
        return (self.weight * x).sum()


def train_a_view(wrapper, kind):
    """Whether the view is rank 0's, whether its gradient is the mean, and what else changed."""
    model = Weighted(kind)
    beside = torch.ones(4, 8, dtype=torch.bool)
    VIEWS[kind](beside).fill_(False)
    before = model.whole[0][beside].clone()
    wrapped = wrap(wrapper, model)
    wrapped(torch.tensor(dist.get_rank() + 1.0)).backward()
    wrapped.sync_gradients()
    return (
        torch.equal(model.weight, VIEWS[kind](of_rank(0))),
        torch.equal(model.weight.grad, torch.full(model.weight.shape, 1.5)),
        torch.equal(model.whole[0][beside], before),
        replica_drift(wrapped),
    )


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", ["columns", "transposed", "every second row"])
def test_a_parameter_that_is_a_view(run, wrapper, kind):
    assert run(train_a_view, wrapper, kind) == [(True, True, True, 0.0)] * 2


def offloaded(wrapper):
    """What an offload that sends early says of a wrapped model, and a wrapper of an offloaded."""
    said = []
    for overlap in (True, False):
        inside, outside = GPT(GPTConfig(**SMALL)), GPT(GPTConfig(**SMALL))
        wrapped = wrap(wrapper, inside)
        kept = [wrapped]
        calls = (
            lambda: OptimizerOffload(inside, LocalHost(), overlap=overlap),  # noqa: B023
            lambda: OptimizerOffload(outside, LocalHost(), overlap=overlap),  # noqa: B023
            lambda: wrap(wrapper, outside),  # noqa: B023
        )
        for call in calls:
            try:
                kept.append(call())
                said.append("")
            except ValueError as error:
                said.append(str(error))
    return said


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradients_that_leave_during_backward_are_not_averaged_after_it(run, wrapper):
    """Each rank's host had its own rank's gradients: replicas drifted by two learning rates."""
    for inside, outside, wrapped, *late in run(offloaded, wrapper):
        assert "leave before that; give overlap=False" in inside
        assert outside == ""
        assert "give the offload overlap=False" in wrapped
        assert late == ["", "", ""]


def train_with_nothing(wrapper, trained):
    """A step of a model that has a parameter of no elements: its gradient, and the drift."""
    model = nn.Linear(4, 1)
    model.nothing = nn.Parameter(torch.empty(0, 4), requires_grad=trained)
    wrapped = wrap(wrapper, model)
    loss = wrapped(torch.full((1, 4), dist.get_rank() + 1.0)).sum()
    (loss + model.nothing.sum()).backward()
    wrapped.sync_gradients()
    return model.weight.grad.tolist(), replica_drift(wrapped)


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("trained", [True, False])
def test_a_parameter_without_elements(run, wrapper, trained):
    assert run(train_with_nothing, wrapper, trained) == [([[1.5] * 4], 0.0)] * 2


def wrap_what_overlaps(kind, *, trained, in_ranks=(0, 1)):
    model = Weighted(kind if dist.get_rank() in in_ranks else "columns", trained=trained)
    try:
        NaiveDataParallel(model)
    except ValueError as error:
        return str(error)
    return torch.equal(model.weight, VIEWS[kind](of_rank(0)))


@on_ranks(2)
@pytest.mark.parametrize("kind", ["expanded", "windows"])
def test_elements_that_share_memory(run, kind):
    """As a buffer they are sent; to train them is refused, in every rank."""
    assert run(wrap_what_overlaps, kind, trained=False) == [True, True]
    for message in run(wrap_what_overlaps, kind, trained=True):
        assert "elements of parameter weight share memory" in message
        assert {"expanded": "(4, 6), strides (8, 0)", "windows": "(15, 4), strides (2, 1)"}[
            kind
        ] in message
    messages = run(wrap_what_overlaps, kind, trained=True, in_ranks=[1])
    assert "rank 1 cannot send its module" in messages[0]
    assert "elements of parameter weight share memory" in messages[1]
    for message in run(wrap_what_overlaps, "expanded", trained=False, in_ranks=[1]):
        assert "module differs between ranks" in message  # or rank 0 would send more than fits


def test_overlap_is_found_exactly():
    x = torch.zeros(40)
    for shape, strides, expected in [
        ((4, 6), (6, 1), False),
        ((6, 4), (1, 6), False),
        ((2, 3), (3, 2), False),  # places 0 2 4 and 3 5 7
        ((3, 4), (3, 2), True),  # places 0 2 4 6 and 3 5 7 9 and 6 ...
        ((4, 1, 3), (3, 0, 1), False),
        ((4, 2), (1, 0), True),
        ((0, 2), (1, 0), False),
        ((), (), False),
        ((5, 4), (2, 1), True),
    ]:
        assert overlaps(x.as_strided(shape, strides)) == expected, (shape, strides)


SENT = [torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16]
SENT += [torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn]


def broadcast_everything():
    rank, found = dist.get_rank(), {}
    for dtype in SENT:
        for shape in ((), (0, 3), (5,), (2, 3)):
            module = nn.Module()
            values = torch.arange(6)[: torch.Size(shape).numel()].view(shape) + 1 - rank
            module.register_buffer("values", values.to(dtype))
            broadcast_module(module)
            wanted = torch.arange(6)[: torch.Size(shape).numel()].view(shape) + 1
            same = torch.equal(module.values.double(), wanted.to(dtype).double())
            found[f"{dtype} {shape}"] = same and replica_drift(module) == 0.0
    turned = nn.Module()
    turned.register_buffer("values", torch.full((2,), complex(rank, 1 + rank)).conj())
    broadcast_module(turned)
    found["conjugate"] = turned.values.tolist() == [-1j, -1j]
    return [case for case, right in found.items() if not right]


@on_ranks(2)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_tensors_of_every_dtype_are_sent(run):
    assert run(broadcast_everything) == [[], []]


def gradients_of_any_kind(wrapper):
    """Gradients that a rank's own backward does not give: half precision, sparse, replaced."""
    rank, found = dist.get_rank(), {}
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float16)
    model = wrap(wrapper, layer)
    model(torch.full((1, 1), 40_000.0, dtype=torch.float16)).sum().backward()
    model.sync_gradients()
    found["float16"] = layer.weight.grad.item()  # the sum would be infinite

    table = nn.Embedding(3, 2, sparse=True)
    model = wrap(wrapper, table)
    for _ in range(2):
        table.zero_grad()
        model(torch.tensor([rank, 2])).sum().backward()
        model.sync_gradients()
        found["sparse"] = table.weight.grad.to_dense()[:, 0].tolist()

    layer = nn.Linear(2, 3, bias=False)
    model = wrap(wrapper, layer)
    grad = torch.arange(6.0).view(3, 2) * (1 + 2 * rank)
    layer.weight.grad = grad.t().contiguous().t() if rank else grad  # other strides in rank 1
    model.sync_gradients()
    found["strides"] = layer.weight.grad.flatten().tolist()

    layer.weight.grad = torch.full((), 1.0 + rank).expand(3, 2)
    model.sync_gradients()
    found["expanded"] = layer.weight.grad.flatten().tolist()
    return found


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_gradients_of_any_kind(run, wrapper):
    for found in run(gradients_of_any_kind, wrapper):
        assert found == {
            "float16": 40_000.0,
            "sparse": [0.5, 0.5, 1.0],
            "strides": [0.0, 2.0, 4.0, 6.0, 8.0, 10.0],
            "expanded": [1.5] * 6,
        }


def train_batch_norm(wrapper):
    """How far our buffers are from those of DDP's first rank, after each step."""
    rank, off = dist.get_rank(), 0.0
    models = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    ddp, ours = DistributedDataParallel(models[0]), wrap(wrapper, models[1])
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * step + rank)
        x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
        ddp(x).square().sum().backward()
        ours(x).square().sum().backward()
        ours.sync_gradients()
        off = max(off, replica_drift(ours))
        for here, there in zip(models[1].buffers(), models[0].buffers(), strict=True):
            first = there.clone()
            dist.broadcast(first, 0)
            off = max(off, (here - first).abs().max().item())
    return off, models[1][1].num_batches_tracked.item()


@on_ranks(3)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_buffers_are_those_of_the_first_rank(run, wrapper):
    for off, steps in run(train_batch_norm, wrapper):
        assert off < 1e-15
        assert steps == 3


def drift_of(kind, who):
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3, dtype=torch.float64))
    mine = dist.get_rank() in who
    if kind in ("nan", "inf"):
        torch.nn.init.constant_(model[1].bias, float(kind) if mine else 0.0)
    elif kind == "mean":
        model[0].running_mean[1] = 0.25 * mine
    else:  # beyond what float32 can tell apart
        model[0].num_batches_tracked.fill_(2**24 + mine)
    for parameter in model[1].weight, model[1].bias if kind not in ("nan", "inf") else None:
        if parameter is not None:
            torch.nn.init.zeros_(parameter)
    return replica_drift(model)


@on_ranks(3)
@pytest.mark.parametrize("who", [[0], [1], [2], [0, 1, 2]])
def test_drift_sees_buffers_and_what_is_no_number(run, who):
    for kind in ("nan", "inf"):
        assert [math.isnan(drift) for drift in run(drift_of, kind, who)] == [True] * 3
    same = len(who) == 3
    assert run(drift_of, "mean", who) == [0.0 if same else 0.25] * 3
    assert run(drift_of, "count", who) == [0.0 if same else 1.0] * 3
    assert run(replica_drift, nn.Identity()) == [0.0] * 3


# --- Steps that go wrong, and parameters that come and go ---------------------------------------


class Fails(torch.autograd.Function):
    """Backward fails the first time."""

    tries = 0

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        Fails.tries += 1
        if Fails.tries == 1:
            raise ArithmeticError("in the middle of backward")
        return grad


class FailsOnce(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3)).double()
        Fails.tries = 0

    def forward(self, x):
        return self.layers[2](self.layers[1](Fails.apply(self.layers[0](x)))).sum()


def go_on_after_a_failed_backward(wrapper, set_to_none, buckets):
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(dist.get_rank())).double()
    ours, alone = FailsOnce(), FailsOnce()
    model, said = wrap(wrapper, ours, **buckets), []
    with contextlib.suppress(ArithmeticError):
        model(x).backward()
    for _ in range(2):  # the first time, at the latest, a message says what to do
        ours.zero_grad(set_to_none=set_to_none)
        try:
            model(x).backward()
            model.sync_gradients()
            break
        except RuntimeError as error:
            said.append(str(error))
            with contextlib.suppress(RuntimeError):
                model.sync_gradients()
    Fails.tries = 1
    alone(x).backward()
    for parameter in alone.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return said, largest_difference(gradients(ours), gradients(alone))


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("buckets", [dict(first_bucket_mb=0, bucket_cap_mb=0), dict()])
def test_a_step_after_a_backward_that_failed(run, wrapper, set_to_none, buckets):
    results = run(go_on_after_a_failed_backward, wrapper, set_to_none, buckets)
    for said, off in results:
        assert off < 1e-12
        assert len(said) == (wrapper is OverlappedDataParallel)
        assert all("If the last backward failed, call sync_gradients()" in text for text in said)


def change_gradients_in_flight(how):
    model = wrap(OverlappedDataParallel, nn.Linear(2, 2))
    weight, x = model.module.weight, torch.ones(1, 2)
    model(x).sum().backward()
    if how == "in place":
        weight.grad.mul_(0.5)
    elif how == "replaced":
        weight.grad = weight.grad * 0.5
    elif how == "zeroed":
        model.zero_grad(set_to_none=False)
    else:
        model.zero_grad()
    said = ""
    try:
        model.sync_gradients()
    except RuntimeError as error:
        said = str(error)
    left = weight.grad
    model.zero_grad()
    model(x).sum().backward()
    model.sync_gradients()
    return said, left is None, weight.grad.tolist()


@on_ranks(2)
@pytest.mark.parametrize("how", ["in place", "replaced", "zeroed"])
def test_gradients_changed_while_they_are_sent(run, how):
    """It cannot be right: a part may have left before. Afterwards a step is as ever."""
    for said, _, gradient in run(change_gradients_in_flight, how):
        assert "gradients were changed while they were being sent" in said
        assert gradient == [[1.0, 1.0], [1.0, 1.0]]


@on_ranks(2)
def test_gradients_thrown_away_while_they_are_sent(run):
    """As in one process: nothing is left to step by."""
    for said, gone, gradient in run(change_gradients_in_flight, "thrown away"):
        assert (said, gone, gradient) == ("", True, [[1.0, 1.0], [1.0, 1.0]])


def two_at_once(wrapper):
    """Two wrappers of one module: both losses in one backward, then one of them alone."""
    rank, module = dist.get_rank(), nn.Linear(2, 1, bias=False)
    first, second = wrap(wrapper, module), wrap(wrapper, module)
    x = torch.ones(1, 2) * (rank + 1)
    with Events() as sent:
        (first(x) + 10 * second(x)).sum().backward()
    for model in (second, first):
        model.sync_gradients()
    both = module.weight.grad.tolist()
    module.zero_grad()
    first(x).sum().backward()
    first.sync_gradients()
    return len(sent), both, module.weight.grad.tolist()


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_two_wrappers_of_one_module_at_once(run, wrapper):
    once = int(wrapper is OverlappedDataParallel)
    assert run(two_at_once, wrapper) == [(once, [[16.5, 16.5]], [[1.5, 1.5]])] * 2


def change_parameters(wrapper, change):
    """After one step: what is said, or how far a second one is from that of one process."""
    rank = dist.get_rank()
    ours, alone = TwoPaths(seed=0).double(), TwoPaths(seed=0).double()
    for model in (ours, alone):
        model.right.requires_grad_(change != "unfrozen")
    model = wrap(wrapper, ours)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (ours, alone)]
    inputs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    for step in range(2):
        if step:
            for changed in (ours, alone):
                if change in ("frozen", "unfrozen"):
                    changed.right.requires_grad_(change == "unfrozen")
                elif change == "added":
                    torch.manual_seed(1)
                    changed.right = nn.Linear(3, 3).double()
                else:
                    changed.float()
                    inputs = inputs.float()
            optimizers = [torch.optim.AdamW(m.parameters(), lr=0.1) for m in (ours, alone)]
        for optimizer in optimizers:
            optimizer.zero_grad()
        try:
            model(inputs[rank], "both").backward()
            model.sync_gradients()
        except RuntimeError as error:
            return str(error)
        (sum(alone(x, "both") for x in inputs) / 2).backward()
        for optimizer in optimizers:
            optimizer.step()
    return largest_difference(list(ours.parameters()), list(alone.parameters()))


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("change", ["frozen", "unfrozen", "added", "float32"])
def test_parameters_that_change_after_wrapping(run, wrapper, change):
    for outcome in run(change_parameters, wrapper, change):
        if wrapper is NaiveDataParallel or change == "frozen":
            assert outcome < 1e-5  # float32 in one case
        else:
            assert "after the module was wrapped, so it is in no bucket: wrap the module" in outcome


@on_ranks(2)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_ranks_that_freeze_different_parameters(run, wrapper):
    def different():
        model = TwoPaths(seed=0)
        model.left.requires_grad_(dist.get_rank() == 0)
        try:
            wrap(wrapper, model)
        except ValueError as error:
            return str(error)

    for message in run(different):
        assert "or which of them are frozen, in ranks [1] are not those in rank 0" in message


@on_ranks(2)
def test_an_exception_inside_no_sync(run):
    def leave():
        model = wrap(OverlappedDataParallel, nn.Linear(2, 1))
        with contextlib.suppress(ArithmeticError), model.no_sync():
            raise ArithmeticError
        with Events() as log:
            model(torch.ones(1, 2)).sum().backward()
        return len(log)

    assert min(run(leave)) > 0  # it sends again


@on_ranks(2)
def test_a_no_sync_inside_another_ends_itself_alone(run):
    def nested():
        model = wrap(OverlappedDataParallel, nn.Linear(2, 1))
        with Events() as log, model.no_sync():
            with model.no_sync():
                pass
            model(torch.ones(1, 2)).sum().backward()
        return len(log)

    assert run(nested) == [0, 0]


@on_ranks(2)
def test_no_token_in_any_rank(run):
    with pytest.raises(RankError, match="num_tokens is 0 in all ranks"):
        run(loss_weight, 0)


# --- The training loops -------------------------------------------------------------------------

JOB = dict(steps=5, batch_size=12, block=16, lr=LR)


def train_with(wrapper, **options):
    model = wrap(wrapper, GPT(GPTConfig(**SMALL), seed=dist.get_rank()))
    return train(model, Corpus(), **JOB, **options)


def train_alone():
    return loop.train(GPT(GPTConfig(**SMALL)), Corpus(), **JOB)


def train_with_ddp(**options):
    return ddp_peer.train(GPT(GPTConfig(**SMALL), seed=dist.get_rank()), Corpus(), **JOB, **options)


@on_ranks(3)
def test_training_loops_agree(run):
    alone = run(train_alone)[0]
    assert alone[0] > alone[-1]
    for options in (dict(), dict(accumulate=2)):
        ddp = run(train_with_ddp, **options)
        assert [result["losses"] for result in ddp] == [ddp[0]["losses"]] * 3
        assert ddp[0]["losses"] == pytest.approx(alone, abs=FLOAT32["losses"])
        for wrapper in WRAPPERS:
            losses = run(train_with, wrapper, **options)
            assert losses == [losses[0]] * 3
            assert losses[0] == pytest.approx(alone, abs=FLOAT32["losses"])


@on_ranks(2)
def test_ddp_peer_reports_bytes_and_times(run):
    size = 4 * GPT(GPTConfig(**SMALL)).num_parameters()
    for result in run(train_with_ddp, accumulate=2):
        assert result["bytes"] == [size] * 5
        assert len(result["step_seconds"]) == 5
        assert min(result["step_seconds"]) > 0


@on_ranks(2)
def test_training_goes_on_with_an_optimizer(run):
    def in_two_parts():
        model = OverlappedDataParallel(GPT(GPTConfig(**SMALL)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        before = model.module.head.weight.clone()
        train(model, Corpus(), steps=1, batch_size=4, block=16, optimizer=optimizer)
        return torch.equal(before - 0.5 * model.module.head.weight.grad, model.module.head.weight)

    assert run(in_two_parts) == [True, True]


@on_ranks(3)
def test_a_batch_that_cannot_be_split(run):
    def uneven(peer):
        gpt = GPT(GPTConfig(**SMALL))
        try:
            if peer:
                ddp_peer.train(gpt, Corpus(), steps=1, batch_size=10)
            else:
                train(NaiveDataParallel(gpt), Corpus(), steps=1, batch_size=10)
        except ValueError as error:
            return str(error)

    for peer in (True, False):
        for message in run(uneven, peer):
            assert "batch_size=10 cannot be split over 3 ranks" in message
