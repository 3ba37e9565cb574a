"""Tensor and sequence parallelism in real processes must be the training of one process.

Tolerances. A row-parallel layer adds p partial sums where one process adds once, so nothing is
bit for bit equal. In float64 that moves the last digits: 1e-10 is asked for, over 5 steps of
AdamW. In float32 losses (about 5.5) may differ by some units in the last place, 5e-6. Adam divides
a gradient by its own size + eps. With its usual eps of 1e-8 a gradient of that size, all rounding,
becomes a part of a step: which part depends on the processor's kernels (1e-6 to 1.3e-4 were met).
So float32 takes eps = 1e-6, and parameters are compared to 1% of one step's length, lr = 1e-3,
which is what a rounding of 1e-8 can do then; gradients (up to 0.4) of parameters that far apart to
2e-5.
"""

from __future__ import annotations

import copy
import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.formulas.traffic import block_bytes, pair_crossings, wire_bytes
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, MLP, Attention, Block, GPTConfig
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.data import NaiveDataParallel
from dlcourse.parallel.divisibility import check_tensor_parallel, equal_part, padded_size
from dlcourse.parallel.replicas import replica_drift
from dlcourse.parallel.sequence import (
    gather_sequence,
    reduce_scatter_sequence,
    sequence_parallel,
)
from dlcourse.parallel.tensor import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    copy_to,
    gather,
    parallel_blocks,
    parallel_cross_entropy,
    reduce_from,
    tensor_parallel,
    train,
)
from dlcourse.parallel.tensor_layers import shard
from dlcourse.peers import tensor_parallel as dtensor
from dlcourse.training import loop
from dlcourse.training.mixed_precision.training_step import mixed_step

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = dict(block_size=16, n_layer=2, n_head=4, n_embd=32)
LR = 1e-3


@pytest.fixture(scope="module")
def run():
    with Ranks(4, default=False) as pool:
        yield pool.run


@pytest.fixture(scope="module")
def run_on_two():
    with Ranks(2, default=False) as pool:
        yield pool.run


def cut_as(kind, gpt):
    if kind == "blocks":
        return tensor_parallel(gpt, vocabulary=False)
    return {"tensor": tensor_parallel, "sequence": sequence_parallel}[kind](gpt)


def apart(ours, wanted):
    pairs = zip(ours, wanted, strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def compare_with_one_process(kind, *, dtype=torch.float64, frozen=(), steps=5, **sizes):
    """The same job cut and whole, in each rank; how far losses, gradients, parameters differ."""
    config = GPTConfig(**(SMALL | sizes))
    torch.set_default_dtype(dtype)
    try:
        alone, ours = GPT(config, seed=0), GPT(config, seed=dist.get_rank())
    finally:
        torch.set_default_dtype(torch.float32)
    for gpt in (alone, ours):
        for name, parameter in gpt.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))
    model = cut_as(kind, ours)
    eps = 1e-8 if dtype == torch.float64 else 1e-6
    optimizers = [torch.optim.AdamW(m.parameters(), lr=LR, eps=eps) for m in (alone, model)]
    random = torch.Generator().manual_seed(1)
    losses, gradients = 0.0, 0.0
    for _ in range(steps):
        text = torch.randint(config.vocab_size, (3, 17), generator=random)
        for optimizer in optimizers:
            optimizer.zero_grad()
        wanted, loss = (m(text[:, :-1], text[:, 1:]) for m in (alone, model))
        wanted.backward()
        loss.backward()
        if kind == "sequence":
            model.sync_gradients()
        losses = max(losses, abs(loss.item() - wanted.item()))
        # What this rank should hold: the whole gradients, cut like parameters
        whole = copy.deepcopy(alone)
        for parameter, original in zip(whole.parameters(), alone.parameters(), strict=True):
            grad = original.grad
            parameter.data = torch.zeros_like(parameter) if grad is None else grad.clone()
        expected = dict(cut_as(kind, whole).named_parameters())
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                gradients = max(gradients, apart([parameter.grad], [expected[name]]))
            else:
                assert parameter.grad is None, name
        for optimizer in optimizers:
            optimizer.step()
    parameters = apart(model.parameters(), cut_as(kind, copy.deepcopy(alone)).parameters())
    return losses, gradients, parameters


def assert_equal(results, tolerance):
    for found in results:
        for what, off, allowed in zip(
            ("losses", "gradients", "parameters"), found, tolerance, strict=True
        ):
            assert off <= allowed, f"{what} are off by {off}: {results}"


FLOAT64 = (1e-10, 1e-10, 1e-10)
FLOAT32 = (5e-6, 2e-5, 0.01 * LR)
KINDS = pytest.mark.parametrize("kind", ["tensor", "sequence", "blocks"])


@KINDS
def test_equals_one_process(run, kind):
    assert_equal(run(compare_with_one_process, kind), FLOAT64)


@KINDS
def test_equals_one_process_in_float32(run, kind):
    assert_equal(run(compare_with_one_process, kind, dtype=torch.float32), FLOAT32)


@KINDS
@pytest.mark.parametrize(
    "case",
    [
        dict(tie_embeddings=True),
        dict(frozen=("blocks.0", "position_embedding")),
        dict(frozen=("head", "token_embedding"), tie_embeddings=True),
        dict(vocab_size=250, tie_embeddings=True),
        dict(vocab_size=5),  # padded to 8: the last rank has no token at all
    ],
    ids=["tied", "frozen", "tied-and-frozen", "padded-and-tied", "a-rank-of-padding"],
)
def test_variations_equal_one_process(run, kind, case):
    assert_equal(run(compare_with_one_process, kind, **case), FLOAT64)


def test_two_ranks(run_on_two):
    for kind in ("tensor", "sequence"):
        results = run_on_two(compare_with_one_process, kind, tie_embeddings=True, vocab_size=251)
        assert_equal(results, FLOAT64)


# --- The layers ---------------------------------------------------------------------------------


def layers_beside_whole():
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    up, down = nn.Linear(6, 8).double(), nn.Linear(8, 6).double()
    embedding = nn.Embedding(10, 6).double()
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    gathered = ColumnParallelLinear(up, gather_output=True)
    out = gathered(x)
    off = [apart([out], [up(x)])]
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad(up(x).square().sum(), x)
    off.append(apart([grad], [wanted]))
    row = RowParallelLinear(down)
    h = torch.randn(3, 5, 8, dtype=torch.float64)
    off.append(apart([row(h.chunk(size, -1)[rank])], [down(h)]))
    odd = ColumnParallelLinear(nn.Linear(6, 7).double(), gather_output=True, pad=True)
    shapes = [tuple(gathered.weight.shape), tuple(row.weight.shape), tuple(odd(x).shape)]
    tokens = torch.arange(10)
    off.append(apart([VocabParallelEmbedding(embedding)(tokens)], [embedding(tokens)]))
    return off, shapes


def test_layers_equal_whole_ones(run):
    for off, shapes in run(layers_beside_whole):
        assert max(off) < 1e-12, off
        assert shapes == [(2, 6), (6, 2), (3, 5, 7)]


def loss_beside_whole(scale, vocab_size, *, ignored=0, dtype=torch.float64, autocast=False):
    """How far value and gradient are from ``F.cross_entropy``; the types of both losses."""
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    logits = (scale * torch.randn(12, vocab_size, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(vocab_size, (12,))
    targets[:ignored] = -100
    padded = F.pad(logits.detach(), (0, -vocab_size % size), value=7.0)  # padding must not count
    mine = padded.chunk(size, dim=1)[rank].clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        wanted = F.cross_entropy(logits, targets)
        loss = parallel_cross_entropy(mine, targets, vocab_size=vocab_size)
    (2 * wanted).backward()
    (2 * loss).backward()
    whole = F.pad(logits.grad, (0, -vocab_size % size)).chunk(size, dim=1)[rank]
    assert mine.grad.dtype == whole.dtype
    value = abs((loss - wanted).item()) / max(1.0, wanted.item())
    return value, apart([mine.grad], [whole]), str(loss.dtype), str(wanted.dtype)


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("vocab_size", [256, 250, 5])
def test_the_loss_equals_cross_entropy(run, scale, vocab_size):
    """Also where exp would overflow, and where a rank holds padding only."""
    for value, gradient, *_ in run(loss_beside_whole, scale, vocab_size):
        assert value < 1e-12
        assert gradient < 1e-12


def test_the_loss_has_the_type_and_the_exactness_of_cross_entropy(run):
    """In 16 bits too: one rounding of the loss is 2**-8 of it in bf16, of gradients below 0.2
    2**-11. Sums of exponentials in 16 bits are off by more."""

    def losses():
        cases = [
            dict(dtype=dtype, autocast=autocast)
            for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64)
            for autocast in (False, True)
        ]
        return [loss_beside_whole(1.0, 250, **case) for case in cases]

    for found in run(losses):
        for value, gradient, got, wanted in found:
            assert got == wanted
            assert value <= 2**-7 and gradient <= 2**-10


WRONG_TARGETS = {
    "has 250": torch.tensor([0, 250]),
    "has -1": torch.tensor([-1, 0]),
    "shape (3,)": torch.tensor([0, 1, 2]),
    "torch.int32": torch.tensor([0, 1], dtype=torch.int32),
    "torch.float32": torch.tensor([0.0, 1.0]),
}


def refusals():
    """What each wrong call says, all in one rank after the other: none may wait for another."""
    config = GPTConfig(**SMALL, vocab_size=250)
    model = tensor_parallel(GPT(config))
    logits = torch.zeros(2, 252 // dist.get_world_size())
    tokens = torch.zeros(1, 4, dtype=torch.long)
    calls = [
        lambda wrong=wrong: parallel_cross_entropy(logits, wrong, vocab_size=250)
        for wrong in WRONG_TARGETS.values()
    ]
    calls += [lambda: parallel_cross_entropy(logits, torch.tensor([0, 252]))]
    calls += [lambda: model(tokens + 250), lambda: model(tokens - 1), lambda: model(tokens + 0.0)]
    calls += [lambda: model(tokens, tokens + 250)]
    for option in (dict(max_norm=1.0), dict(scale_grad_by_freq=True), dict(sparse=True)):
        calls.append(lambda option=option: VocabParallelEmbedding(nn.Embedding(8, 4, **option)))
    found = []
    for call in calls:
        try:
            call()
            found.append("nothing was refused")
        except ValueError as error:
            found.append(str(error))
    return found


def test_wrong_types_and_shapes_are_refused_in_every_rank(run):
    wanted = [*WRONG_TARGETS, "targets_N has 252", "tokens has 250", "tokens has -1"]
    wanted += ["tokens has type torch.float32", "targets_N has 250"]
    wanted += ["max_norm=1.0", "scale_grad_by_freq=True", "sparse=True"]
    for messages in run(refusals):
        for message, words in zip(messages, wanted, strict=True):
            assert words in message


def padding_beside_whole(padding_idx):
    torch.manual_seed(0)
    whole = nn.Embedding(10, 4, padding_idx=padding_idx).double()
    ours = VocabParallelEmbedding(whole)
    tokens = torch.arange(10).repeat(2, 1)
    for table in (whole, ours):
        (table(tokens) - 1).square().sum().backward()
    expected = VocabParallelEmbedding(nn.Embedding(10, 4, _weight=whole.weight.grad))
    return apart([ours(tokens), ours.weight.grad], [whole(tokens), expected.weight])


def test_the_padding_row_learns_nothing(run):
    for padding_idx in (0, 2, 9, -3):  # 10 rows over 4 ranks: 3, 3, 3 and 1
        assert max(run(padding_beside_whole, padding_idx)) < 1e-12


def test_a_vocabulary_cut_without_padding_is_refused(run):
    """What the padding is for: rows that nobody holds would drop out of the sum."""

    def naive():
        torch.manual_seed(0)
        logits, targets = torch.randn(100, 10), torch.randint(10, (100,))
        width = 10 // dist.get_world_size()
        mine = logits.narrow(1, dist.get_rank() * width, width).clone()
        with pytest.raises(ValueError, match="allowed is 0 to 7"):
            parallel_cross_entropy(mine, targets)

    run(naive)


OUTSIDE = {  # what is wrong: (token, target, the words that must say so)
    "target above": (None, 20, "targets_N has 20"),
    "target below": (None, -1, "targets_N has -1"),
    "token above": (20, None, "tokens has 20"),
    "token below": (-1, None, "tokens has -1"),
}


def loss_and_gradients(model, tokens, targets):
    loss = model(tokens, targets)
    loss.backward()
    return loss.detach(), model.norm.weight.grad


def odd_targets(case, dtype=torch.float64):
    """Loss and a gradient of the tensor-parallel GPT beside one process's; or the words."""
    config = GPTConfig(vocab_size=20, block_size=8, n_layer=1, n_head=4, n_embd=16)
    tokens = torch.randint(0, 20, (2, 8), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1, 1)
    if case in OUTSIDE:
        token, target, _ = OUTSIDE[case]
        tokens[0, 0] = tokens[0, 0] if token is None else token
        targets[0, 0] = targets[0, 0] if target is None else target
        with pytest.raises(ValueError) as caught:
            tensor_parallel(GPT(config).to(dtype))(tokens, targets)
        return str(caught.value)
    targets[0, : {"some ignored": 5, "a sequence ignored": 8}.get(case, 0)] = -100
    targets = torch.full_like(targets, -100) if case == "all ignored" else targets
    whole = loss_and_gradients(GPT(config).to(dtype), tokens, targets)
    cut = loss_and_gradients(tensor_parallel(GPT(config).to(dtype)), tokens, targets)
    return [(a - b).abs().nan_to_num(0.0 if a.isnan() else 1.0).max().item() if not a.dim()
            else (a - b).abs().max().item() for a, b in zip(whole, cut, strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    "case", ["none ignored", "some ignored", "a sequence ignored", "all ignored"]
)
def test_ignored_targets_do_not_count(run, case):
    for differences in run(odd_targets, case):
        assert max(differences) < 1e-12


@pytest.mark.parametrize("case", OUTSIDE)
def test_numbers_outside_the_vocabulary_are_refused_in_every_rank(run, case):
    assert all(OUTSIDE[case][2] in words for words in run(odd_targets, case))


# --- What is sent -------------------------------------------------------------------------------


def messages_of_a_step(kind, **options):
    """(op, bytes) of each collective in a step of the lesson's GPT, and the ledger's peak."""
    gpt = GPT()
    cut = {"dtensor": dtensor.tensor_parallel}.get(kind) or (lambda g: cut_as(kind, g))
    model = cut(gpt, **options) if options else cut(gpt)
    batch = Corpus(limit=100_000).batch(0, micro_batch=2, block=128)
    optimizer = torch.optim.AdamW(model.parameters())
    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    for step in range(2):
        if step:
            recorder.start()
        optimizer.zero_grad()
        loss = model(*batch)
        loss.backward()
        if kind == "sequence":
            model.sync_gradients()
        optimizer.step()
    record = recorder.stop()
    sent = [(e["op"], e["bytes"]) for e in record["comm"] if e["op"] != "recv"]
    return sent, record["memory"]["at_peak"], loss.item()


STREAM = 4 * 2 * 128 * 128  # bytes of the stream: 2 sequences, 128 positions, width 128, float32
TOKENS = 2 * 128


class PartOf(torch.autograd.Function):
    """This rank's part of what all ranks have whole; backward joins the parts' gradients."""

    @staticmethod
    def forward(ctx, x):
        return x.chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].contiguous()

    @staticmethod
    def backward(ctx, grad):
        parts = [torch.empty_like(grad) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, grad.contiguous())
        return torch.cat(parts, dim=-1)


def two_matrices(first, second):
    """(op, bytes) that x -> up -> GELU -> down sends each way, and how far it is off."""
    torch.manual_seed(0)
    mlp, x = MLP(GPTConfig(n_embd=32)), torch.randn(6, 32, requires_grad=True)
    joined = (first, second) == ("columns", "rows")

    def cut(linear, how, *, whole_in, whole_out):
        if how == "columns":
            return ColumnParallelLinear(linear, gather_output=whole_out)
        layer = RowParallelLinear(linear)
        return lambda x: layer(PartOf.apply(x) if whole_in else x)

    up = cut(mlp.up, first, whole_in=True, whole_out=not joined)
    down = cut(mlp.down, second, whole_in=not joined, whole_out=True)
    wanted = mlp(x)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
    sent = []
    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    recorder.start()
    y = down(F.gelu(up(x)))
    sent.append(recorder.stop()["comm"])
    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    recorder.start()
    y.square().sum().backward()
    sent.append(recorder.stop()["comm"])
    off = apart((y, x.grad), (wanted, wanted_grad))
    return [[(e["op"], e["bytes"]) for e in events] for events in sent], off


@pytest.mark.parametrize("first", ["columns", "rows"])
@pytest.mark.parametrize("second", ["columns", "rows"])
def test_two_cut_matrices_send_what_the_formula_says(run, first, second):
    sizes = pair_crossings(first, second, tokens=6, width=32, hidden=128)
    forward = [sizes[name] for name in ("middle", "end") if sizes[name][0]]
    backward = [sizes[name] for name in ("middle_backward", "start_backward") if sizes[name][0]]
    for sent, off in run(two_matrices, first, second):
        assert sent == [forward, backward]
        assert off < 1e-4


@pytest.fixture(scope="module")
def steps_of(run):
    kinds = {name: run(messages_of_a_step, name) for name in ("tensor", "sequence", "blocks")}
    for name, prepare in (("dtensor", True), ("dtensor-plain", False)):
        kinds[name] = run(messages_of_a_step, "dtensor", prepare_input=prepare)
    return kinds


def test_sixteen_all_reduces_for_four_layers(steps_of):
    for sent, _, _ in steps_of["blocks"] + steps_of["dtensor"]:
        assert sent == [("all_reduce", STREAM)] * 16
    for sent, _, _ in steps_of["dtensor-plain"]:
        assert sent == [("all_reduce", STREAM)] * 24


def test_blocks_send_what_the_formula_says(steps_of):
    want = block_bytes(layers=4, tokens=TOKENS, width=128, world_size=4)
    for sent, _, _ in steps_of["blocks"]:
        assert sum(wire_bytes(op, size, 4) for op, size in sent) == want


def test_vocabulary_and_loss_cost_two_all_reduces_and_three_numbers_a_token(steps_of):
    for sent, _, _ in steps_of["tensor"]:
        assert sorted(sent) == sorted(
            [("all_reduce", STREAM)] * 18
            + [("all_reduce", 4 * TOKENS), ("all_reduce", 4 * 2 * TOKENS)]
        )


def test_sequence_parallel_sends_what_tensor_parallel_sends(steps_of):
    """Reduce-scatter (3 messages of a quarter each) and all-gather: half an all-reduce each."""
    for sent, _, _ in steps_of["sequence"]:
        assert sent.count(("send", STREAM // 4)) == 3 * 18
        assert sent.count(("all_gather", STREAM)) == 18
        rest = [bytes for op, bytes in sent if op == "all_reduce"]
        whole = 4 * (128 * 128 + 9 * 2 * 128 + 8 * 128)  # positions, norms, biases after the sum
        assert sorted(rest) == [4 * TOKENS, 8 * TOKENS, whole]


def test_each_rank_holds_its_part(steps_of):
    alone = 4 * GPT().num_parameters()
    for _, peak, _ in steps_of["tensor"]:
        assert 0.25 < peak["parameters"] / alone < 0.28
        assert peak["optimizer_state"] == pytest.approx(2 * peak["parameters"], rel=1e-3)
    activations = {kind: steps_of[kind][0][1]["activations"] for kind in ("tensor", "sequence")}
    # 0.76, and up to three quarters of the stream (0.1) that slow messages still hold
    assert activations["sequence"] < 0.9 * activations["tensor"]


def gradients_beside_the_peer(peer):
    """The libraries must sum the same gradients: those of what every rank holds whole."""
    batch = Corpus(limit=9999).batch(0, block=16)
    sent, gradients = [], []
    for cut in (lambda gpt: tensor_parallel(gpt, vocabulary=False), peer):
        model = cut(GPT(GPTConfig(**SMALL)))
        with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
            model(*batch).backward()
        sent.append(sum(event["op"] == "all_reduce" for event in recorder.record["comm"]))
        whole = [
            *model.position_embedding.parameters(),
            *model.blocks[0].attention_norm.parameters(),
        ]
        gradients.append([parameter.grad for parameter in whole])
    return sent, apart(*gradients)


PEERS = {
    "dtensor": dtensor.tensor_parallel,
    "dtensor-plain": lambda gpt: dtensor.tensor_parallel(gpt, prepare_input=False),
    "megatron": dtensor.megatron_parallel,
}


@pytest.mark.parametrize("name", PEERS)
def test_libraries_sum_the_same_gradients(run, name):
    if name == "megatron" and not dtensor.megatron_installed():
        pytest.skip("megatron-core is not installed")
    for sent, off in run(gradients_beside_the_peer, PEERS[name]):
        assert sent == [8, 12 if name == "dtensor-plain" else 8]
        assert off < 1e-6


def test_dtensor_has_the_same_loss(steps_of):
    for kind in ("dtensor", "dtensor-plain", "blocks", "tensor", "sequence"):
        assert steps_of[kind][0][2] == pytest.approx(steps_of["tensor"][0][2], abs=5e-6)


# --- The loop, groups, mistakes -----------------------------------------------------------------


def losses_of(kind):
    config, job = GPTConfig(**SMALL), dict(steps=3, batch_size=4, block=16)
    if kind == "alone":
        return loop.train(GPT(config), Corpus(), **job)
    return train(cut_as(kind, GPT(config, seed=dist.get_rank())), Corpus(), **job)


def test_training_loops_agree(run):
    alone = run(losses_of, "alone")[0]
    for kind in ("tensor", "sequence"):
        losses = run(losses_of, kind)
        assert losses == [losses[0]] * 4
        assert losses[0] == pytest.approx(alone, abs=FLOAT32[0])


def cut_in_two_groups():
    """A mesh of 2 x 2: each pair is one model, and the pairs hold different ones."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    config, rank = GPTConfig(**SMALL), dist.get_rank()
    batch = Corpus(limit=9999).batch(0, block=16)
    wanted = GPT(config, seed=rank // 2 * 2)(*batch).item()
    model = tensor_parallel(GPT(config, seed=rank), mesh["tensor"])
    return abs(model(*batch).item() - wanted), model.head.weight.size(0)


def test_a_dimension_of_a_mesh(run):
    for off, rows in run(cut_in_two_groups):
        assert off < FLOAT32[0]
        assert rows == 128


def forget_to_sum_backward():
    """Without copy_to the first loss is right, and what every rank holds whole drifts apart."""
    batch = Corpus(limit=9999).batch(0, block=16)
    found = []
    for enter in (copy_to, lambda x, group: x):
        gpt = GPT(GPTConfig(**SMALL))
        model = parallel_blocks(gpt, enter=enter)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = model(*batch)
        loss.backward()
        optimizer.step()
        found.append((loss.item(), replica_drift(gpt.blocks[0].attention_norm)))
    return found


def test_a_missing_sum_in_backward_drifts_without_an_error(run):
    (loss, drift), (same_loss, drifted) = run(forget_to_sum_backward)[0]
    assert loss == same_loss
    assert drift == 0.0 < 1e-6 < drifted


def test_sizes_that_do_not_divide():
    """Without ranks and without a process group: the notebook asks before it starts any."""
    with pytest.raises(ValueError, match=r"n_head=4 cannot be cut into 3 equal parts.*divisor"):
        check_tensor_parallel(n_head=4, n_embd=128, size=3)
    with pytest.raises(ValueError, match=r"n_embd=130 cannot be cut into 4 equal parts"):
        check_tensor_parallel(n_head=4, n_embd=130, size=4)
    with pytest.raises(ValueError, match="0 ranks cannot share n_head=4"):
        equal_part("n_head", 4, 0)
    check_tensor_parallel(n_head=8, n_embd=128, size=4)
    assert [padded_size(v, 4) for v in (5, 8, 250)] == [8, 8, 252]


def messages_of_mistakes():
    config, found = GPTConfig(**SMALL), []
    parts = GPT(GPTConfig(**SMALL | dict(n_head=2, n_embd=32)))
    cut = parallel_blocks(GPT(config))
    text = torch.zeros(1, 14, dtype=torch.int64)
    for mistake in (
        lambda: tensor_parallel(parts),
        lambda: parallel_blocks(parts.blocks),
        lambda: parallel_blocks(cut),
        lambda: ColumnParallelLinear(nn.Linear(8, 6)),
        lambda: RowParallelLinear(nn.Linear(6, 8)),
        lambda: sequence_parallel(GPT(config))(text),
        lambda: tensor_parallel(GPT(config))(torch.zeros(1, 17, dtype=torch.int64)),
    ):
        try:
            mistake()
        except ValueError as error:
            found.append(str(error))
    return found


def test_mistakes_name_both_numbers(run):
    for found in run(messages_of_mistakes):
        for message, part in zip(
            found,
            (
                "n_head=2 cannot be cut into 4",
                "n_head=2 cannot be cut into 4",
                "model has been cut before",
                "out_features=6 cannot be cut into 4",
                "in_features=6 cannot be cut into 4",
                "sequence length=14 cannot be cut into 4",
                "17 tokens does not fit block_size=16",
            ),
            strict=True,
        ):
            assert part in message


CUTS = {
    "tensor": tensor_parallel,
    "blocks": lambda gpt: tensor_parallel(gpt, vocabulary=False),
    "only blocks": parallel_blocks,
    "sequence": sequence_parallel,
}


def cut_twice(first, second):
    """What the second cut says, and whether the first model is as before."""
    gpt = GPT(GPTConfig(**SMALL))
    model = CUTS[first](gpt)
    before = [parameter.clone() for parameter in model.parameters()]
    found = []
    for again in {id(gpt): gpt, id(model): model}.values():
        for mistake in (CUTS[second], NaiveDataParallel):
            try:
                mistake(again)
                found.append("")
            except ValueError as error:
                found.append(str(error))
    return found, apart(model.parameters(), before)


@pytest.mark.parametrize("second", CUTS)
@pytest.mark.parametrize("first", CUTS)
def test_a_model_is_cut_once(run, first, second):
    """And not wrapped over the ranks that it is cut over: their parts would be overwritten."""
    for found, changed in run(cut_twice, first, second):
        assert set(found[::2]) == {"model has been cut before: make a new GPT and cut that"}
        for message in found[1::2]:
            cut = "is cut over the ranks [0, 1, 2, 3], and each has its own part" in message
            assert cut or "holds a SequenceParallelGPT, whose sync_gradients()" in message
        assert changed == 0.0


def copies_of_a_cut_model():
    """A mesh of 2 x 2: two copies of a model that is cut in two, on half of the batch each."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    batch = Corpus(limit=9999).batch(0, micro_batch=4, block=16)
    alone = GPT(GPTConfig(**SMALL)).double()
    alone(*batch).backward()
    model = tensor_parallel(GPT(GPTConfig(**SMALL)).double(), mesh["tensor"])
    copies = NaiveDataParallel(model, process_group=mesh.get_group("data"))
    copies(*(half.chunk(2)[mesh.get_local_rank("data")] for half in batch)).backward()
    copies.sync_gradients()
    norm = clip_grad_norm_(copies, 0.1)
    wanted = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    return (norm - wanted).abs().item(), apart([model.norm.weight.grad], [alone.norm.weight.grad])


def test_copies_of_a_cut_model(run):
    for off in run(copies_of_a_cut_model):
        assert max(off) < 1e-12


def clip_beside_one_process(kind, max_norm, frozen=()):
    """How far norm and gradients are from one process's, and whether ranks have the same norm."""
    alone, ours = GPT(GPTConfig(**SMALL)).double(), GPT(GPTConfig(**SMALL)).double()
    for gpt in (alone, ours):
        for name, parameter in gpt.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(frozen)))
    model = cut_as(kind, ours)
    batch = Corpus(limit=9999).batch(0, block=16)
    for each in (alone, model):
        each(*batch).backward()
    if kind == "sequence":
        model.sync_gradients()
    wanted = nn.utils.clip_grad_norm_(alone.parameters(), max_norm)
    norm = clip_grad_norm_(model, max_norm)
    norms = [torch.empty_like(norm) for _ in range(dist.get_world_size())]
    dist.all_gather(norms, norm)
    gradients = dict(alone.named_parameters())
    off = [
        (p.grad - gradients[name].grad).abs().max().item()
        for name, p in model.named_parameters()
        if p.grad is not None and p.shape == gradients[name].shape
    ]
    return (norm - wanted).abs().item(), max(off, default=0.0), len({n.item() for n in norms})


@KINDS
@pytest.mark.parametrize("max_norm", [0.05, 1e6])
def test_clipping_equals_one_process(run, kind, max_norm):
    for norm, gradients, different in run(clip_beside_one_process, kind, max_norm):
        assert norm < 1e-10  # of up to 2000
        assert gradients < 1e-12
        assert different == 1


@pytest.mark.parametrize("frozen", [("blocks", "token", "head"), ("position", "norm")])
def test_clipping_where_gradients_are_missing(run, frozen):
    """All of what is cut, or some of what is whole."""
    for norm, gradients, _ in run(clip_beside_one_process, "tensor", 0.05, frozen):
        assert max(norm, gradients) < 1e-12


def another_part(kind):
    """Load this rank's own state, then another rank's: what is said, and what has changed."""
    model = cut_as(kind, GPT(GPTConfig(**SMALL)).double())
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(own)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    other = everyone[dist.get_rank() - 1]
    try:
        model.load_state_dict(other)
        said = ""
    except ValueError as error:
        said = str(error)
    names = [name for name, value in own.items() if isinstance(value, torch.Tensor)]
    now = model.state_dict()
    return said, apart([now[name] for name in names], [own[name] for name in names])


@KINDS
def test_a_state_says_whose_part_it_is(run, kind):
    for rank, (said, changed) in enumerate(run(another_part, kind)):
        assert f"holds part {(rank - 1) % 4} of 4 of " in said and f"rank part {rank} of 4" in said
        assert changed == 0.0


def train_with_clipping(kind):
    """The step of the mixed precision lesson, which clips and knows nothing of ranks."""
    batch = Corpus(limit=9999).batch(0, block=16)
    losses = []
    for model in (GPT(GPTConfig(**SMALL)).double(), cut_as(kind, GPT(GPTConfig(**SMALL)).double())):
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(4):
            loss = mixed_step(model, batch, optimizer, max_norm=0.1)
        losses.append(loss.item())
    return abs(losses[0] - losses[1]), replica_drift(model.norm)


@KINDS
def test_a_step_that_clips_equals_one_process(run, kind):
    for off, drift in run(train_with_clipping, kind):
        assert off < 1e-12
        assert drift == 0.0


def tie_by_hand():
    """Without ``tie_embeddings``, and after a step of SGD."""
    batch, losses = Corpus(limit=9999).batch(0, block=16), []
    for kind in ("alone", "tensor", "sequence"):
        gpt = GPT(GPTConfig(**SMALL)).double()
        gpt.head.weight = gpt.token_embedding.weight
        model = gpt if kind == "alone" else cut_as(kind, gpt)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(2):
            loss = mixed_step(model, batch, optimizer)
        losses.append(loss.item())
    return [abs(loss - losses[0]) for loss in losses]


def test_embeddings_tied_by_hand(run):
    for off in run(tie_by_hand):
        assert max(off) < 1e-12


def share_between_layers():
    gpt = GPT(GPTConfig(**SMALL))
    gpt.blocks[1].mlp.up = gpt.blocks[0].mlp.up
    try:
        tensor_parallel(gpt)
    except ValueError as error:
        return str(error), isinstance(gpt.blocks[0].mlp.up, nn.Linear)


def test_a_matrix_that_layers_share_is_refused(run):
    for message, untouched in run(share_between_layers):
        assert "a matrix that several attentions or MLPs share" in message
        assert untouched


class SoftGPT(GPT):
    def forward(self, tokens_BT, targets_BT=None):
        return 3 * torch.tanh(super().forward(tokens_BT) / 3)


class ScaledEmbedding(nn.Embedding):
    def forward(self, tokens):
        return super().forward(tokens) * 4


class LoRA(nn.Linear):
    def forward(self, x):
        return super().forward(x) + x.sum()


class ScaledAttention(Attention):
    def forward(self, x_BTC, scale=2.0):
        return super().forward(x_BTC) * scale


class ShiftedBlock(Block):
    def forward(self, x_BTC):
        return super().forward(x_BTC.roll(1, dims=1))


def change(gpt, what):
    block, width = gpt.blocks[0], gpt.config.n_embd
    if what == "hook":
        gpt.register_forward_hook(lambda module, args, out: 2 * out)
    elif what == "embedding":
        gpt.token_embedding = ScaledEmbedding(gpt.config.vocab_size, width)
    elif what == "positions":
        gpt.position_embedding.weight = gpt.token_embedding.weight
    elif what == "linear":
        block.mlp.up = LoRA(width, 4 * width)
    elif what == "weight_norm":
        nn.utils.parametrizations.weight_norm(block.attention.q)
    elif what == "sequential":
        block.mlp.down = nn.Sequential(block.mlp.down)
    elif what == "attention":
        block.attention = ScaledAttention(gpt.config)
    elif what == "twice":
        block.attention.k.weight = block.attention.q.weight
    elif what == "dropout":
        block.mlp_norm = nn.Sequential(block.mlp_norm, nn.Dropout(0.5))
    elif what == "block":
        gpt.blocks[0] = ShiftedBlock(gpt.config)
    elif what == "norm":
        gpt.norm = nn.Sequential(gpt.norm)
    elif what == "max_norm":
        gpt.position_embedding.max_norm = 1.0


def refused_changes():
    """What each kind of cut says to each change, and whether the model is untouched then."""
    found = {}
    for kind in ("tensor", "sequence", "blocks"):
        for what in REFUSED:
            gpt = (SoftGPT if what == "class" else GPT)(GPTConfig(**SMALL, vocab_size=16))
            change(gpt, what)
            try:
                cut_as(kind, gpt)
                found[kind, what] = ""
            except ValueError as error:
                whole = not any(hasattr(layer, "cut") for layer in gpt.modules())
                found[kind, what] = str(error) if whole else "cut in part"
    return found


VOCABULARY, STREAM_ONLY = ("tensor", "sequence"), ("sequence",)
ALL = ("tensor", "sequence", "blocks")
REFUSED = {
    "class": (VOCABULARY, "model is a SoftGPT with a forward() of its own"),
    "hook": (VOCABULARY, "model is a GPT with hooks"),
    "embedding": (VOCABULARY, "token_embedding is a ScaledEmbedding with a forward()"),
    "positions": (VOCABULARY, "position_embedding shares its matrix with the token embedding"),
    "linear": (ALL, "blocks.0.mlp.up is a LoRA with a forward() of its own"),
    "weight_norm": (ALL, "blocks.0.attention.q is a ParametrizedLinear with a parametrized weight"),
    "sequential": (ALL, "blocks.0.mlp.down is a Sequential and no Linear"),
    "attention": (ALL, "blocks.0.attention is a ScaledAttention with a forward() of its own"),
    "twice": (ALL, "a matrix that several attentions or MLPs share, or one of them has twice"),
    "dropout": (ALL, "blocks.0.mlp_norm.1 is a Dropout with p=0.5"),
    "block": (STREAM_ONLY, "blocks.0 is a ShiftedBlock with a forward() of its own"),
    "norm": (STREAM_ONLY, "gpt has a Sequential, which would see only this rank's positions"),
    "max_norm": (STREAM_ONLY, "embedding.max_norm=1.0"),
}


def test_what_a_cut_would_drop_or_split_is_refused(run_on_two):
    for found in run_on_two(refused_changes):
        for (kind, what), message in found.items():
            kinds, part = REFUSED[what]
            assert part in message if kind in kinds else not message, (kind, what, message)


def test_layers_refuse_what_they_would_drop(run_on_two):
    def refused():
        linear, embedding = LoRA(4, 4), ScaledEmbedding(4, 4)
        for call in (ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding):
            with pytest.raises(ValueError, match=f"{call.__name__} cuts it as"):
                call(embedding if call is VocabParallelEmbedding else linear)

    run_on_two(refused)


def synced_after_each_backward():
    """Two micro-batches, then a second step; and once more after all of it."""
    alone, given = (GPT(GPTConfig(**SMALL)).double() for _ in range(2))
    ours = sequence_parallel(given)
    text = Corpus(limit=9999)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.5) for model in (ours, alone)]
    for number in range(4):
        for model in (ours, alone):
            model(*text.batch(number, block=16)).backward()
        ours.sync_gradients()
        if number % 2:
            ours.sync_gradients()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
    whole = dict(alone.named_parameters())
    pairs = [(p, whole[name]) for name, p in ours.named_parameters() if name in whole]
    return max((a - b).abs().max().item() for a, b in pairs if a.shape == b.shape)


def test_sequence_parallel_may_sync_after_each_backward(run_on_two):
    assert max(run_on_two(synced_after_each_backward)) < 1e-12


def rms_norms_in_sequence_parallel():
    alone, ours = (GPT(GPTConfig(**SMALL)).double() for _ in range(2))
    for gpt in (alone, ours):
        gpt.norm = nn.RMSNorm(32).double()
        gpt.blocks[0].mlp_norm = nn.RMSNorm(32).double()
    batch, model = Corpus(limit=9999).batch(0, block=16), sequence_parallel(ours)
    for gpt in (alone, model):
        gpt(*batch).backward()
    model.sync_gradients()
    names = ("norm.weight", "blocks.0.mlp_norm.weight")
    grads = [[gpt.get_parameter(name).grad for name in names] for gpt in (model, alone)]
    return apart(*grads)


def test_other_norms_get_the_gradient_of_all_positions(run_on_two):
    assert max(run_on_two(rms_norms_in_sequence_parallel)) < 1e-12


def differentiate_twice():
    """The sums over ranks have no second derivative here; it must not be a wrong one."""
    found = []
    for function in (copy_to, reduce_from, gather, gather_sequence, reduce_scatter_sequence):
        x = torch.randn(1, 4, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(function(x).pow(3).sum(), x, create_graph=True)
        try:
            grad.sum().backward()
        except RuntimeError as error:
            found.append("once_differentiable" in str(error))
    return found


def test_second_derivatives_are_refused(run):
    assert run(differentiate_twice) == [[True] * 5] * 4


def test_gather_and_shard(run):
    def joined():
        whole = nn.Parameter(torch.arange(12.0).view(3, 4), requires_grad=False)
        part = shard(whole, dim=1)
        return gather(part).tolist(), part.requires_grad, part.untyped_storage().nbytes()

    for back, trains, num_bytes in run(joined):
        assert back == torch.arange(12.0).view(3, 4).tolist()
        assert not trains
        assert num_bytes == 12  # 3 numbers: the whole matrix is not kept alive


# --- One rank of many, on fake tensors ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["tensor", "sequence"])
def test_a_step_as_one_rank_of_64(kind):
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    config = GPTConfig(block_size=128, n_layer=2, n_head=64, n_embd=512, vocab_size=50257)
    dist.init_process_group("fake", rank=0, world_size=64, store=FakeStore())
    try:
        with torch.device("meta"):
            gpt = GPT(config)
        model = cut_as(kind, gpt)
        with FakeTensorMode(allow_non_fake_inputs=True):
            model = model.to_empty(device="cpu")
            optimizer = torch.optim.AdamW(model.parameters())
            tokens = torch.zeros(2, 128, dtype=torch.int64)
            recorder = Recorder(0, 64)
            recorder.start()
            model(tokens, tokens).backward()
            if kind == "sequence":
                model.sync_gradients()
            optimizer.step()
            record = recorder.stop()
    finally:
        dist.destroy_process_group()
    stream = 4 * 2 * 128 * 512
    ops = [(e["op"], e["bytes"]) for e in record["comm"]]
    if kind == "tensor":
        assert ops.count(("all_reduce", stream)) == 4 * 2 + 2
    else:
        assert ops.count(("reduce_scatter", stream)) == ops.count(("all_gather", stream)) == 10
    held = record["memory"]["end"]["parameters"]
    assert held == 4 * sum(p.numel() for p in model.parameters())
    assert model.head.weight.shape == (786, 512)
