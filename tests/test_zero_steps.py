"""Steps that are not forward, backward, step: ZeRO must do what one process does, or refuse.

All ranks read the same batch, so the mean over the ranks is one process's gradient, and the same
script can be run on a model in a ZeRO class and on a plain one. All in float64: sums over two
ranks are exact up to the last digits, and Adam may turn these into 1e-9 of a parameter (where a
gradient is lost or counted twice, parameters are off by a step's length, 1e-2).
"""

from __future__ import annotations

import copy
import dataclasses
import io
import sys
from contextlib import contextmanager, nullcontext
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from dlcourse import Ranks
from dlcourse.formulas.recipe import Recipe
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import (
    BucketedDataParallel,
    NaiveDataParallel,
    OverlappedDataParallel,
)
from dlcourse.parallel.mesh import make_mesh
from dlcourse.parallel.sequence import sequence_parallel
from dlcourse.parallel.tensor import tensor_parallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training.checkpointing.checkpoint import checkpoint as our_checkpoint
from dlcourse.training.memory_anatomy import Training

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

STAGES = [ZeRO1, ZeRO2, ZeRO3]
stages = pytest.mark.parametrize("stage", STAGES)
CLOSE = 1e-8


@pytest.fixture(scope="module")
def run():
    with Ranks(2, default=False) as ranks:
        yield ranks.run


class Alone:
    """A plain model with the calls of a ZeRO model."""

    def __init__(self, module):
        self.module, self.shards = module, list(module.parameters())

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def sync_gradients(self):
        pass

    sync_parameters = sync_gradients

    def zero_grad(self, set_to_none=True):
        self.module.zero_grad(set_to_none)


class Block(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, 12)
        self.down = nn.Linear(12, width)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, block=Block):
        super().__init__()
        self.first, self.blocks = nn.Linear(8, 8), nn.ModuleList([block() for _ in range(3)])
        self.last = nn.Linear(8, 1)

    def forward(self, x, skip=()):
        x = self.first(x)
        for i, block in enumerate(self.blocks):
            if i not in skip:
                x = block(x)
        return self.last(x).square().mean()


def batch(number):
    return torch.randn(4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(number))


def new(make=Net):
    torch.manual_seed(0)
    return make().double()


@contextmanager
def whole(model):
    with model.gathered() if isinstance(model, ZeRO3) else nullcontext():
        yield [p.detach().clone() for p in model.module.parameters()]


def train(model, script, decay=0.1, **options):
    """Three steps, each as the script says; returns all parameters."""
    optimizer = torch.optim.AdamW(model.shards, lr=1e-2, weight_decay=decay)
    for step in range(3):
        script(model, optimizer, step, **options)
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()
        if step != 1 or isinstance(
            model, Alone
        ):  # once, nobody clears gradients: sync_gradients() has ended the step
            optimizer.zero_grad()
    with whole(model) as parameters:
        return parameters


def apart(stage, script, make=Net, **options):
    ours = train(stage(new(make)), script, **options)
    theirs = train(Alone(new(make)), script, **options)
    # An exception or NaN must not pass for equality
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a.numel() + b.numel()]
    differences = [(a - b).abs().max().item() for a, b in pairs]
    return max(differences) if all(d == d for d in differences) else float("nan")


def equal(results):
    assert all(result <= CLOSE for result in results), results


# --- Several forwards and backwards -------------------------------------------------------------


def two_and_two(model, optimizer, step):
    a, b = model(batch(step)), model(batch(9 + step))
    a.backward()
    b.backward()


def kept_graph(model, optimizer, step):
    loss = model(batch(step))
    loss.backward(retain_graph=True)
    loss.backward()
    model(batch(9 + step)).backward()


def nobody_looks(model, optimizer, step):
    """Forwards without backward, with and without autograd, everywhere in a step."""
    model(batch(5))
    loss = model(batch(step))
    with torch.no_grad():
        model.module.eval()
        model(batch(6))
        model.module.train()
    loss.backward()
    model(batch(7))
    model.sync_gradients()
    model(batch(8))
    model.sync_gradients()  # once more changes nothing


def some_inputs(model, optimizer, step):
    x = batch(step).requires_grad_()
    chosen = [p for name, p in model.module.named_parameters() if "blocks.1" in name]
    model(x).backward(inputs=[x, *chosen])
    (grad,) = torch.autograd.grad(model(x), [x])
    (model(batch(7)) * grad.sum()).backward()


def skipped_block(model, optimizer, step):
    """In step 1 nobody uses block 1: no step, no weight decay for it."""
    model(batch(step), skip=[1] if step == 1 else []).backward()
    model(batch(7), skip=[0] if step == 2 else [1] if step == 1 else []).backward()


def through_kwargs(model, optimizer, step):
    model(x=batch(step)).backward()


@stages
@pytest.mark.parametrize(
    "script", [two_and_two, kept_graph, nobody_looks, some_inputs, skipped_block, through_kwargs]
)
def test_backwards_add_up(run, stage, script):
    equal(run(apart, stage, script))


class Shared(Net):
    """One block at three places of a list."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([self.blocks[0]] * 3)


class Hollow(Net):
    """With parameters of no elements, as some models have them."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.blocks[1].frozen = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, x, skip=()):
        return super().forward(x, skip) + self.nothing.sum()


class Strided(Net):
    """Matrices that are a part of a larger one: columns, every second row, its transpose."""

    def double(self):
        super().double()
        larger = torch.randn(3, 24, 24, dtype=torch.float64)
        views = larger[0, :12, :8], larger[1, :24:2, :8], larger[2, :8, :12].t()
        for block, view in zip(self.blocks, views, strict=True):
            block.up.weight = nn.Parameter(view)
        return self


@stages
@pytest.mark.parametrize("make", [Shared, Hollow, Strided])
def test_unusual_parameters(run, stage, make):
    equal(run(apart, stage, two_and_two, make))


# --- What clears gradients ----------------------------------------------------------------------


def clear(model, optimizer, who, to_none=True):
    {"optimizer": optimizer, "model": model, "module": model.module}[who].zero_grad(to_none)


def thrown_away(model, optimizer, step, who, to_none):
    """A gradient that is cleared before, between, and after other ones."""
    clear(model, optimizer, who, to_none)
    model(batch(20)).backward()
    clear(model, optimizer, who, to_none)
    waiting, loss = model(batch(21)), model(batch(step))
    clear(model, optimizer, who, to_none)
    waiting.backward()
    clear(model, optimizer, who, to_none)  # no forward between it and the next backward
    loss.backward()
    model(batch(7)).backward()


@stages
@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zeros"])
@pytest.mark.parametrize("who", ["optimizer", "model", "module"])
def test_zero_grad_clears_all(run, stage, who, to_none):
    equal(run(apart, stage, partial(thrown_away, who=who, to_none=to_none)))


class Broken(Exception):
    pass


def fail(*_):
    raise Broken


def cut_off(model, optimizer, step, where, who, again=False):
    part = model.module.blocks[1].up
    if where == "forward":
        hook = part.register_forward_pre_hook(fail)
    else:
        hook = part.register_full_backward_pre_hook(fail)
    kept = None if where == "forward" or not again else model(batch(step))
    with pytest.raises(Broken):
        (model(batch(20)) if kept is None else kept).backward(retain_graph=again)
    hook.remove()
    clear(model, optimizer, who)
    (model(batch(step)) if kept is None else kept).backward()
    model(batch(7)).backward()


@stages
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("who", ["optimizer", "model", "module"])
def test_an_exception_leaves_nothing_behind(run, stage, where, who):
    equal(run(apart, stage, partial(cut_off, where=where, who=who)))


class Fragile(torch.autograd.Function):
    broken = False

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if Fragile.broken:
            raise Broken
        return grad


class FragileNet(Net):
    def forward(self, x, skip=()):
        x = self.blocks[2](self.first(x))
        x = Fragile.apply(self.blocks[1](x))
        return self.last(self.blocks[0](x)).square().mean()


def same_graph_again(model, optimizer, step):
    """The backward that failed is run again, without a forward in between."""
    loss = model(batch(step))
    Fragile.broken = True
    with pytest.raises(Broken):
        loss.backward(retain_graph=True)
    Fragile.broken = False
    optimizer.zero_grad()
    loss.backward()


@stages
def test_the_backward_that_failed_again(run, stage):
    equal(run(apart, stage, same_graph_again, FragileNet))


def caught_without_zero_grad(stage):
    """As in ``train``, which needs no zero_grad: the failed backward was the step's first."""
    model, want = stage(new()), stage(new())
    hook = model.module.blocks[1].up.register_full_backward_pre_hook(fail)
    with pytest.raises(Broken):
        model(batch(20)).backward()
    hook.remove()
    found = []
    for m in (model, want):
        if stage is ZeRO1:  # as in one process, p.grad is there until somebody clears it
            m.start_gradients()
        m(batch(0)).backward()
        m.sync_gradients()
        found.append([shard.grad for shard in m.shards])
    return max((a - b).abs().max().item() for a, b in zip(*found, strict=True))


@stages
def test_a_failed_first_backward_is_forgotten(run, stage):
    equal(run(caught_without_zero_grad, stage))


# --- Checkpoints, and what modules return -------------------------------------------------------

WAYS = {
    "reentrant": partial(torch_checkpoint, use_reentrant=True),
    "early stop": partial(torch_checkpoint, use_reentrant=False),
    "ours": our_checkpoint,
}


class InAndOut(Net):
    """A layer inside of a checkpoint and outside; a whole unit in one; and half a unit."""

    def __init__(self, way):
        super().__init__()
        self.way = WAYS[way]

    def forward(self, x, skip=()):
        shared, whole, half = self.blocks
        x = shared(self.first(x))
        x = self.way(shared, x)
        x = self.way(whole, x)
        x = x + half.down(self.way(lambda y: torch.tanh(half.up(y)), half.norm(x)))
        x = self.way(shared, x)
        return self.last(shared(x)).square().mean()


@stages
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("script", [two_and_two, kept_graph])
def test_layers_in_and_out_of_checkpoints(run, stage, way, script):
    if way == "early stop" or script is two_and_two:
        equal(run(apart, stage, script, partial(InAndOut, way)))


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    note: str = ""


class ReturnsObject(Block):
    kind = Output

    def forward(self, x):
        return self.kind(super().forward(x))


class Router(nn.Module):
    """Has a matrix of its own, and keeps what alone leads to it."""

    def __init__(self):
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 8)

    def forward(self, x):
        self.aux = (self.inner(torch.tanh(x @ self.weight)) @ self.weight).square().mean()
        return x * 1.5


class Named(dict):
    """pytree takes it for a leaf, as it does every subclass that it does not know."""


class OfItsOwn(nn.Module):
    """A matrix of its own, so that nothing but the output tells of its backward."""

    def __init__(self, kind):
        super().__init__()
        self.weight, self.kind = nn.Parameter(torch.randn(8, 8)), kind

    def forward(self, x):
        x = torch.tanh(x) @ self.weight
        return x.view(-1, 8) if self.kind == "view" else Named(x=x)


class Roundabout(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.blocks = nn.Linear(8, 8), nn.ModuleList([OfItsOwn(kind), OfItsOwn(kind)])

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
            if isinstance(x, Named):
                x = x["x"]
            else:
                x += 1  # in place, through a view
        return x.square().mean()


@stages
@pytest.mark.parametrize("kind", ["view", "dict"])
def test_outputs_that_tell_of_their_backward_in_a_roundabout_way(run, stage, kind):
    """ZeRO3 computed with NaN, or with memory that was given back."""
    equal(run(apart, stage, two_and_two, partial(Roundabout, kind)))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 1)
        self.objects = nn.ModuleList([ReturnsObject() for _ in range(2)])
        self.routers = nn.ModuleList([Router() for _ in range(2)])
        self.dicts = nn.ModuleList(
            [nn.ModuleDict({"a": Block(), "b": nn.Linear(8, 8)}) for _ in range(2)]
        )
        self.lists = nn.ModuleList([nn.ModuleList([Block(), Block()]) for _ in range(2)])
        self.numbers = nn.ModuleList([nn.ParameterList([torch.randn(8)]) for _ in range(2)])
        self.uncalled = nn.ModuleList([Block(), Block()])

    def forward(self, x, skip=()):
        x = self.first(x)
        for block in self.objects:
            x = block(x).hidden
        for block in self.dicts:
            x = block["b"](block["a"](x))
        for blocks in self.lists:
            for block in blocks:
                x = block(x)
        for numbers in self.numbers:
            x = x * numbers[0]
        for block in self.uncalled:
            x = block.forward(x)  # hooks of the block do not run
        aux = 0
        for router in self.routers:
            router(x)
            aux = aux + router.aux
        return self.last(x).square().mean() + aux


@stages
@pytest.mark.parametrize("script", [two_and_two, kept_graph, nobody_looks])
def test_odd_modules(run, stage, script):
    equal(run(apart, stage, script, Odd))


def from_outside(model, optimizer, step):
    """Parts of the model called past it, and a loss that only an attribute leads to."""
    x = model.module.blocks[2](model.module.first(batch(step)))
    model.module.last(model.module.blocks[0].up(x)[:, :8]).sum().backward()


@stages
def test_parts_of_the_model_alone(run, stage):
    equal(run(apart, stage, from_outside, decay=0.0))  # half a unit is not used


def under_autocast(model, optimizer, step):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch(step).float())
        with torch.no_grad():
            model(batch(step).float())
    loss.backward()


class Float32(Net):
    def double(self):
        return self


@stages
def test_autocast(run, stage):
    """The same roundings in both: only float32 sums over the ranks differ, then divided by Adam."""
    assert max(run(apart, stage, under_autocast, Float32)) < 1e-4


class SparseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.blocks = nn.Embedding(5, 8, sparse=True), nn.ModuleList([Block()])

    def forward(self, x):
        return self.blocks[0](self.rows(x)).square().mean()


def sparse(stage):
    models = [stage(new(SparseNet)), Alone(new(SparseNet))]
    for model in models:
        optimizer = torch.optim.SGD(model.shards, lr=0.1)
        for step in range(3):
            optimizer.zero_grad()
            for part in ([0, 1], [1, 3]):
                model(torch.tensor(part) + (step == 2)).backward()
            model.sync_gradients()
            optimizer.step()
            model.sync_parameters()
    with whole(models[0]) as ours, whole(models[1]) as theirs:
        return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


@stages
def test_sparse_gradients(run, stage):
    equal(run(sparse, stage))


def second_derivative(model, optimizer, step):
    x = batch(step).requires_grad_()
    (slope,) = torch.autograd.grad(model(x), [x], create_graph=True)
    slope.square().mean().backward()


@pytest.mark.parametrize("stage", [ZeRO1, ZeRO2])
def test_second_derivatives(run, stage):
    equal(run(apart, stage, second_derivative))


# --- Clipping -----------------------------------------------------------------------------------


def clipped(model, optimizer, step):
    model(batch(step)).backward()
    model.sync_gradients()
    if isinstance(model, Alone):
        norm = clip_grad_norm_(model.module.parameters(), 0.1)
    else:
        norm = model.clip_grad_norm_(0.1)
    assert norm > 0.1


@stages
def test_clipping_is_over_all_ranks(run, stage):
    equal(run(apart, stage, clipped))


def clipped_complex():
    """How far a complex gradient that ZeRO has clipped is from torch's."""
    off = []
    for make in (nn.Sequential, lambda module: ZeRO1(nn.Sequential(module))):
        torch.manual_seed(0)
        model = make(nn.Linear(4, 4, bias=False, dtype=torch.complex128))
        model(torch.ones(2, 4, dtype=torch.complex128)).abs().sum().backward()
        if isinstance(model, ZeRO1):
            model.sync_gradients()
            norm = model.clip_grad_norm_(0.1)
            grads = [shard.grad for shard in model.shards]
        else:
            norm = clip_grad_norm_(model.parameters(), 0.1)
            grads = [model[0].weight.grad.flatten().chunk(2)[dist.get_rank()]]
        off.append((norm, torch.cat(grads)))
    (wanted_norm, wanted), (norm, got) = off
    return (norm - wanted_norm).abs().item() + (got - wanted).abs().max().item()


def test_complex_gradients_are_clipped(run):
    assert max(run(clipped_complex)) < 1e-6


# --- Copies and state dicts ---------------------------------------------------------------------


def states(stage):
    model, plain = stage(new()), new()
    want = {f"module.{name}": value for name, value in plain.state_dict().items()}
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    saved = torch.load(file)
    same = saved.keys() == want.keys() and all(torch.equal(saved[k], want[k]) for k in want)
    # Other numbers are what the model computes with, and what the optimizer goes on from
    other = {name: value + 0.5 for name, value in want.items()}
    model.load_state_dict(other)
    plain.load_state_dict({k.removeprefix("module."): v for k, v in other.items()})
    optimizers = [torch.optim.SGD(p, lr=0.1) for p in (model.shards, plain.parameters())]
    losses = []
    for _ in range(2):
        losses.append((model(batch(0)), plain(batch(0))))
        for loss in losses[-1]:
            loss.backward()
        model.sync_gradients()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        model.sync_parameters()
    return same, max(abs((a - b).item()) for a, b in losses)


@stages
def test_state_dict_is_of_whole_parameters(run, stage):
    for same, off in run(states, stage):
        assert same and off < CLOSE


def numbers_of(model):
    with whole(model) as parameters:
        return torch.cat([p.flatten() for p in parameters])


def loaded_in_ranks(stage, who):
    """Load other numbers in the ranks ``who``: what is said, and what changes."""
    model = stage(Net())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    before = numbers_of(model)
    if dist.get_rank() in who:
        for value in state.values():
            value += 1
    try:
        model.load_state_dict(state)
        said = ""
    except ValueError as error:
        said = str(error)
    return said, (numbers_of(model) - before).abs().max().item()


@stages
def test_ranks_load_the_same_numbers_or_none(run, stage):
    assert run(loaded_in_ranks, stage, (0, 1)) == [("", pytest.approx(1))] * 2
    for said, changed in run(loaded_in_ranks, stage, (1,)):
        assert "numbers in state_dict of ranks [1] are not those of rank 0" in said
        assert changed == 0


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.layer(x) * self.scale


def written_outside(write):
    """Write to a parameter of one element while it is in shards; then write as one should."""
    model, x = ZeRO3(Scaled()), torch.ones(2, 4)
    with torch.no_grad():
        if write:
            model.module.scale.fill_(3.0)
        try:
            model(x)
            said = ""
        except RuntimeError as error:
            said = str(error)
        first = model(x)
        with model.gathered():
            model.module.scale.fill_(3.0)
        return said, torch.allclose(model(x), 3 * first)


def test_one_element_written_outside_is_not_lost_in_silence(run):
    assert run(written_outside, False) == [("", True)] * 2
    for said, tripled in run(written_outside, True):
        assert "3.0 was written" in said and "model.gathered()" in said and tripled


def changed_when_gathered():
    model = ZeRO3(new())
    with model.gathered(), torch.no_grad():
        before = model(batch(0))
        model.module.last.bias.add_(1.0)
        model.module.blocks[0].up.weight.data.mul_(2.0)
        after = model(batch(0))
    again = model(batch(0)).detach()
    try:
        with model.gathered(), torch.no_grad():
            model.module.last.bias.add_(dist.get_rank())
    except ValueError as error:
        message = str(error)
    return (before != after).item(), (after - again).abs().item(), message


def test_what_is_written_when_gathered_stays(run):
    for changed, off, message in run(changed_when_gathered):
        assert changed and off < CLOSE
        assert "those of ranks [1] are not those of rank 0" in message


def small():  # of torch's modules: pickle must find the classes
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))


def copies(stage):
    """The module of stages 1 and 2 can be copied: a plain model, whose training changes nothing."""
    model = stage(new(small))
    model(batch(0)).sum().backward()
    averaged = AveragedModel(model.module)
    file = io.BytesIO()
    torch.save(model.module, file)
    file.seek(0)
    for other in (copy.deepcopy(model.module), torch.load(file, weights_only=False)):
        other(batch(0)).sum().backward()
        torch.optim.SGD(other.parameters(), lr=1.0).step()
        assert all(p.grad is not None for p in other.parameters())
        other.zero_grad()
        assert all(p.grad is None for p in other.parameters())
    model.sync_gradients()
    want = new(small)
    want(batch(0)).sum().backward()
    norm = torch.stack([p.grad.norm() for p in want.parameters()]).norm()
    off = abs(model.clip_grad_norm_(1e9) - norm)
    with torch.no_grad():
        return max(off.item(), (model(batch(1)) - averaged(batch(1))).abs().max().item())


@pytest.mark.parametrize("stage", [ZeRO1, ZeRO2])
def test_copies_of_the_module(run, stage):
    equal(run(copies, stage))


# --- Refusals -----------------------------------------------------------------------------------


def message(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def step_of(optimizer, model, sync=True):
    model(batch(0)).backward()
    if sync:
        model.sync_gradients()
    optimizer.step()


def change(model, how):
    how(model.module)
    model(batch(0))


def twice_in_one(stage):
    net = new()
    return nn.Sequential(stage(net), net)


def refusals(stage):
    model, early = stage(new()), new()
    before = torch.optim.AdamW(early.parameters())
    late = stage(early)
    inner = torch.optim.AdamW(model.module.parameters())
    fresh = [stage(new()) for _ in range(6)]
    tokens = torch.zeros(1, 4, dtype=torch.long)

    def stale():
        loss = model(batch(0))
        step_of(torch.optim.SGD(model.shards, lr=0.1), model)
        model.sync_parameters()
        loss.backward()

    def scaled():
        fresh[5](batch(0)).backward()
        fresh[5].shards[0].grad.mul_(2)
        fresh[5].sync_gradients()
        fresh[5].clip_grad_norm_(1.0)

    def clipped_in_parts():
        gpt = GPT(GPTConfig(block_size=4, n_layer=1, n_head=2, n_embd=8))
        cut = stage(tensor_parallel(gpt), process_group=alone)
        cut(tokens, tokens).backward()
        cut.sync_gradients()
        cut.clip_grad_norm_(1.0)

    groups = [dist.new_group([r]) for r in range(2)]
    alone = groups[dist.get_rank()]
    return {
        "parameters": message(lambda: clip_grad_norm_(model.parameters(), 1.0)),
        "optimizer": message(lambda: torch.optim.AdamW(model.parameters())),
        "named": message(lambda: torch.optim.AdamW(model.named_parameters())),
        "inner": message(lambda: step_of(inner, model)),
        "before": message(lambda: step_of(before, late)),
        "unsynced": message(
            lambda: step_of(torch.optim.AdamW(fresh[0].shards), fresh[0], sync=False)
        ),
        "clip unsynced": message(lambda: fresh[0].clip_grad_norm_(1.0)),
        "clip in parts": message(clipped_in_parts),
        "stale": message(stale),
        "scaled": message(scaled) if stage is ZeRO1 else None,
        "again": message(lambda: stage(model.module)),
        "other": message(lambda: ZeRO1(model.module.blocks)),
        "inside": message(lambda: stage(nn.Sequential(model))),
        "overlapped": message(lambda: stage(OverlappedDataParallel(new()))),
        "DDP": message(lambda: stage(DistributedDataParallel(new()))),
        "deepcopy": message(lambda: copy.deepcopy(model)),
        "pickle": message(lambda: torch.save(model, io.BytesIO())),
        "float": message(model.float),
        "module.float": message(lambda: change(fresh[1], lambda m: m.float())),
        "replaced": message(
            lambda: change(fresh[2], lambda m: setattr(m, "last", nn.Linear(8, 1).double()))
        ),
        "frozen": message(lambda: change(fresh[3], lambda m: m.last.requires_grad_(False))),
        "assign": message(lambda: model.load_state_dict(model.state_dict(), assign=True)),
    }


REFUSALS = {
    "parameters": "RuntimeError: ZeROn.parameters(): their gradients are in shards",
    "optimizer": "RuntimeError: ZeROn.parameters()",
    "named": "RuntimeError: ZeROn.parameters()",
    "inner": "RuntimeError: this AdamW was given a parameter of a module that is in a ZeROn",
    "before": "RuntimeError: this AdamW was given a parameter of a module that is in a ZeROn",
    "unsynced": "call model.sync_gradients() after the last backward",
    "clip unsynced": "clip_grad_norm_() before sync_gradients()",
    "clip in parts": "other ranks hold other parts of its gradient",
    "stale": "modified by an inplace operation",
    "scaled": "changed (scaled, clipped) before sync_gradients()",
    "again": "ValueError: module is in a ZeROn already",
    "other": "ValueError: module is in a ZeROn already",
    "inside": "ValueError: module holds a ZeROn",
    "overlapped": "ValueError: module holds a OverlappedDataParallel",
    "DDP": "ValueError: module holds a DistributedDataParallel",
    "deepcopy": "RuntimeError: a ZeROn cannot be copied",
    "pickle": "RuntimeError: a ZeROn cannot be copied",
    "float": "another device or type before it is wrapped",
    "module.float": "has been given another memory",
    "replaced": "last.weight is not among the parameters",
    "frozen": "last.weight is frozen, and was trainable",
    "assign": "ValueError: assign=True would put other parameters",
}


@stages
def test_refusals(run, stage):
    for said in run(refusals, stage):
        for name, words in REFUSALS.items():
            if name != "scaled" or stage is ZeRO1:
                assert words.replace("ZeROn", stage.__name__) in str(said[name]), name


def sequences_in_zero1():
    """How far the last LayerNorm is from one process's after a step; what other wrappers say."""
    mesh = make_mesh(data=1, tensor=2)
    tensor, data = mesh.get_group("tensor"), mesh.get_group("data")
    tokens = torch.arange(16).view(2, 8) % 7

    def gpt():
        return GPT(GPTConfig(block_size=8, n_layer=1, n_head=2, n_embd=8, vocab_size=8)).double()

    alone, model = gpt(), ZeRO1(sequence_parallel(gpt(), tensor), process_group=data)
    optimizer = torch.optim.SGD(model.shards, lr=0.5)
    model(tokens, tokens).backward()
    model.sync_gradients()
    optimizer.step()
    model.sync_parameters()
    alone(tokens, tokens).backward()
    torch.optim.SGD(alone.parameters(), lr=0.5).step()
    wrappers = NaiveDataParallel, BucketedDataParallel, OverlappedDataParallel, ZeRO2
    cut = partial(sequence_parallel, process_group=tensor)
    said = [message(partial(wrapper, cut(gpt()), process_group=data)) for wrapper in wrappers]
    recipe = Recipe(optimizer="sgd")
    said.append(message(lambda: Training(cut(gpt()), recipe)))
    return (model.module.norm.weight - alone.norm.weight).abs().max().item(), said


def test_a_model_that_syncs_gradients_of_its_own_is_synced_or_refused(run):
    """LayerNorms of sequence parallelism stayed each rank's own: off by 0.09 after one step."""
    for apart, said in run(sequences_in_zero1):
        assert apart <= CLOSE
        assert all("take ZeRO1, which calls it" in str(words) for words in said), said


def closures(stage):
    """A step with a closure that syncs, beside one process; what it says without."""
    model, alone = stage(new()), new()
    optimizer = torch.optim.SGD(model.shards, lr=0.1)

    def closure(syncs):
        optimizer.zero_grad()
        loss = model(batch(0))
        loss.backward()
        if syncs:
            model.sync_gradients()
        return loss

    said = message(lambda: optimizer.step(partial(closure, False)))
    optimizer.step(closure=partial(closure, True))
    model.sync_parameters()
    alone(batch(0)).backward()
    torch.optim.SGD(alone.parameters(), lr=0.1).step()
    with whole(model) as ours:
        apart = max((a - b).abs().max() for a, b in zip(ours, alone.parameters(), strict=True))
    return apart.item(), said


@stages
def test_a_closure_that_forgets_to_sync_is_refused(run, stage):
    """ZeRO1 stepped with this rank's gradient: the check came before the closure had made it."""
    for apart, said in run(closures, stage):
        assert apart <= CLOSE
        assert stage is not ZeRO1 or "call model.sync_gradients()" in str(said)


def with_integers(stage):
    net = new()
    net.codes = nn.Parameter(torch.arange(3, dtype=torch.int8), requires_grad=False)
    model = stage(net)
    model(batch(0)).backward()
    model.sync_gradients()
    with whole(model):
        return net.codes.tolist()


@stages
def test_frozen_integers_stay(run, stage):
    assert run(with_integers, stage) == [[0, 1, 2]] * 2


def refusals_of_stage_3():
    model = ZeRO3(new())
    x = batch(0).requires_grad_()
    numbers = nn.ModuleList([nn.ParameterList([torch.ones(8)])])

    def forward_when_gathered():
        with model.gathered():
            model(x)

    def cut():
        gpt = GPT(GPTConfig(block_size=4, n_layer=1, n_head=2, n_embd=8))
        ZeRO3(sequence_parallel(gpt))

    found = {
        "second derivatives": message(lambda: model(x).backward(create_graph=True)),
        "are in shards": message(model.module.state_dict),
        "in shards: call": message(lambda: model.module.blocks[0].load_state_dict({})),
        "cannot be copied": message(lambda: copy.deepcopy(model.module.blocks[1].up)),
        "put it into torch.no_grad()": message(forward_when_gathered),
        "has parameters and no forward": message(lambda: ZeRO3(numbers, units=[numbers[0]])),
        "needs whole gradients": message(cut),
    }
    simple = ZeRO3(new(small)).module
    found["in a ZeRO3 cannot be copied"] = message(lambda: torch.save(simple, io.BytesIO()))
    return found


def test_refusals_of_stage_3(run):
    for said in run(refusals_of_stage_3):
        for words, text in said.items():
            assert words in str(text), (words, text)
