"""A checkpoint must change memory and FLOPs as predicted, and gradients by not a single bit.

The second forward repeats the first one's operators on the same numbers, so gradients are compared
for equality. Peaks are compared to 0.2%: the formulas leave out single numbers such as the loss.
"""

from __future__ import annotations

import gc
import sys
import weakref
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlcourse import Ranks
from dlcourse.formulas.activations import (
    activation_moments,
    activation_peak,
    layer_bytes,
    layer_terms,
    quoted_terms,
    selective_peak,
)
from dlcourse.formulas.checkpoint_segments import best_length, every
from dlcourse.formulas.flops import step_flops
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import BucketedDataParallel, OverlappedDataParallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training.checkpointing.checkpoint import checkpoint
from dlcourse.training.checkpointing.segments import (
    PRODUCTS,
    checkpoint_blocks,
    early_stop,
    reentrant,
    segmented,
    selective,
)
from dlcourse.training.mixed_precision.autocast import Autocast

pytestmark = pytest.mark.usefixtures("nothing_before")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SHAPES = [
    (GPTConfig(n_layer=6, n_embd=64, n_head=4, block_size=64), 2, 64),
    (GPTConfig(n_layer=4, n_embd=64, n_head=2, block_size=32, vocab_size=2048), 4, 32),  # loss
    (GPTConfig(n_layer=4, n_embd=192, n_head=6, block_size=64), 1, 16),  # parameters > activations
]
HOW = {"ours": checkpoint, "early_stop": early_stop, "reentrant": reentrant}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors: two threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tokens(sequences, block):
    return torch.randint(0, 256, (sequences, block), generator=torch.Generator().manual_seed(1))


def step(config, sequences, block, segments=(), how=checkpoint):
    """Peak of activations, FLOPs and gradients of one step."""
    gpt = checkpoint_blocks(GPT(config), segments, how)
    x = tokens(sequences, block)
    gc.collect()
    with Recorder(0, 1) as recorder:
        gpt(x, x).backward()
    found = recorder.record
    return found["memory"]["peaks"]["activations"], found["flops"], gradients(gpt)


def gradients(module):
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- Gradients, memory, FLOPs -------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_peak_flops_and_gradients_of_every_placement(shape):
    config, sequences, block = shape
    n, batch = config.n_layer, dict(micro_batch=sequences, block=block)
    peak, flops, want = step(*shape)
    assert peak == pytest.approx(activation_peak(config, **batch), rel=0.002)
    assert flops == step_flops(config, **batch)
    for segments in (every(n, 1), every(n, 2), [1] * (n // 2), [n - 1]):
        for name, how in HOW.items():
            if name == "reentrant" and segments != every(n, 2):
                continue  # the same as ours
            stops = {"early_stop": name == "early_stop"}
            peak, flops, got = step(*shape, segments, how)
            assert flops == step_flops(config, **batch, segments=segments, **stops)
            predicted = activation_peak(config, **batch, segments=segments, **stops)
            assert peak == pytest.approx(predicted, 0.002)
            assert same(got, want)


@pytest.mark.parametrize("shape", SHAPES)
def test_selective_repeats_no_product(shape):
    config, sequences, block = shape
    _, plain, want = step(*shape)
    peak, flops, got = step(*shape, every(config.n_layer, 1), selective(*PRODUCTS))
    assert flops == plain
    predicted = selective_peak(config, micro_batch=sequences, block=block)
    assert peak == pytest.approx(predicted, rel=0.01)
    assert same(got, want)


def test_layer_bytes_are_what_autograd_saves():
    """The difference of two models, measured without any part of the recorder."""

    def saved(n_layer):
        gpt = GPT(GPTConfig(n_layer=n_layer))
        own, seen = {p.untyped_storage()._cdata for p in gpt.parameters()}, {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                seen[storage._cdata] = storage.nbytes(), tensor.detach()
            return tensor.detach()  # an output that holds its own node would never be freed

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            gpt(tokens(2, 32), tokens(2, 32))
        return sum(size for size, _ in seen.values())

    batch = dict(micro_batch=2, block=32)
    assert saved(3) - saved(2) == layer_bytes(GPTConfig(), **batch)
    assert sum(layer_terms(GPTConfig(), **batch).values()) == 4 * 64 * (16 * 128 + 4 + 4)


def test_the_quoted_formula():
    """GPT-3's layer in the paper's appendix sizes: 34 s b h and 5 a s^2 b."""
    gpt3 = GPTConfig(n_layer=96, n_head=96, n_embd=12288)
    batch = dict(micro_batch=1, block=2048)
    terms = quoted_terms(gpt3, **batch)
    assert sum(terms.values()) == 34 * 2048 * 12288 + 5 * 96 * 2048**2
    assert set(terms) == set(layer_terms(gpt3, **batch))
    assert 5 * 96 * 2048 / 12288 == 80  # "5as/h = 80" for GPT-3: section 4 of the paper


def test_the_moments_name_where_the_peak_is():
    def moments_of(shape, segments):
        config, sequences, block = shape
        batch = dict(micro_batch=sequences, block=block)
        return activation_moments(config, **batch, segments=segments)

    moments = moments_of(SHAPES[1], [1] * 4)
    assert max(moments, key=moments.get) == "loss"
    moments = moments_of(SHAPES[0], [2, 2])
    assert max(moments, key=moments.get) in ("layers", "loss")
    assert set(moments) == {"loss", "head", "embedding", "layers", "segment 0", "segment 1"}


# --- sqrt(n) ------------------------------------------------------------------------------------


def chain(n, segments=None):
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(n)]
    return nn.Sequential(*(layers if segments is None else segmented(layers, segments)))


def chain_peak(n, segments=None):
    model, x = chain(n, segments), torch.ones(256, 16, requires_grad=True)
    gc.collect()
    with Recorder(0, 1) as recorder:
        model(x).sum().backward()
    return recorder.record["memory"]["peaks"]["activations"] / x.nbytes


def test_sqrt_n_is_best_where_a_layer_stores_one_value():
    n = 36
    peaks = {k: chain_peak(n, every(n, k)) for k in (1, 4, 6, 9, 36)}
    best = min(peaks, key=peaks.get)
    assert best == 6 == best_length(n, layer=1, boundary=1)
    assert peaks[6] < chain_peak(n) / 2
    for k, peak in peaks.items():
        assert peak == pytest.approx(n / k + k, abs=4)  # what is at work: a few values


def test_for_a_gpt_it_is_another_root():
    config, sequences, block = SHAPES[0]
    layer = layer_bytes(config, micro_batch=sequences, block=block)
    stream = 4 * sequences * block * config.n_embd
    for n in (4, 16, 36, 144, 576):
        k = best_length(n, layer=layer, boundary=stream)
        cost = {i: n / i * stream + i * layer for i in range(1, n + 1)}
        assert cost[k] <= 1.07 * min(cost.values())
    assert best_length(16, layer=layer, boundary=stream) == 1  # not 4


# --- Random state, autocast, and what else must be the same -------------------------------------


def with_dropout(how, **options):
    gpt = GPT(SHAPES[0][0])
    for block in gpt.blocks:
        block.mlp = nn.Sequential(block.mlp, nn.Dropout(0.5))
    if how is not None:
        checkpoint_blocks(gpt, [1, 2, 3], lambda f, x: how(f, x, **options))
    torch.manual_seed(7)
    gpt(tokens(2, 16), tokens(2, 16)).backward()
    return gradients(gpt), torch.rand(3)


def test_dropout_drops_the_same_values_again():
    want, after = with_dropout(None)
    for how in HOW.values():
        got, random = with_dropout(how)
        assert same(got, want)
        assert torch.equal(random, after)  # and what comes later draws the same numbers


def test_without_the_random_state_gradients_are_wrong():
    want, _ = with_dropout(None)
    wrong, _ = with_dropout(checkpoint, keep_random_state=False)
    assert (wrong[2] - want[2]).norm() > 0.1 * want[2].norm()


def test_the_second_forward_runs_under_the_same_autocast():
    def found(how):
        gpt = checkpoint_blocks(GPT(SHAPES[0][0]), [] if how is None else [2, 2], how or checkpoint)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = gpt(tokens(2, 16), tokens(2, 16))
        loss.backward()
        return gradients(gpt)

    want = found(None)
    for how in HOW.values():
        assert same(found(how), want)


def test_the_second_forward_runs_under_our_own_autocast():
    def found(segments):
        gpt = checkpoint_blocks(GPT(SHAPES[0][0]), segments, checkpoint)
        with Autocast("cpu", torch.bfloat16):
            loss = gpt(tokens(2, 16), tokens(2, 16))
        loss.backward()  # outside, where the mode is not on
        return gradients(gpt)

    assert same(found([2, 2]), found([]))


def test_nested_and_several_inputs():
    a, b = (torch.randn(4, 3, requires_grad=True) for _ in range(2))

    def inner(x, y, factor):
        return (x * y * factor).tanh()

    def outer(x, y):
        return checkpoint(inner, x, y, 2.0) + y

    outer(a, b).sum().backward()
    want = a.grad.clone(), b.grad.clone()
    a.grad = b.grad = None
    checkpoint(outer, a, b).sum().backward()
    assert torch.equal(a.grad, want[0])
    assert torch.equal(b.grad, want[1])


def test_without_autograd_it_only_calls():
    with torch.no_grad():
        assert checkpoint(torch.tanh, torch.zeros(2)).grad_fn is None


def frozen(names):
    gpt = GPT(SHAPES[0][0])
    for name, p in gpt.named_parameters():
        p.requires_grad_(not any(part in name for part in names))
    return gpt


@pytest.mark.parametrize("names", [(), ("embedding",), ("embedding", "blocks.0"), ("",)])
@pytest.mark.parametrize("segments", [[1] * 6, [2, 2], [6]])
def test_above_frozen_layers(names, segments):
    want, gpt = frozen(names), checkpoint_blocks(frozen(names), segments)
    x = tokens(1, 8)
    losses = [model(x, x) for model in (want, gpt)]
    assert losses[0].requires_grad is losses[1].requires_grad is (names != ("",))
    if losses[0].requires_grad:
        for loss in losses:
            loss.backward()
    assert torch.equal(*losses)
    pairs = zip(want.parameters(), gpt.parameters(), strict=True)
    assert all((a.grad is None) is (b.grad is None) for a, b in pairs)
    assert same(gradients(gpt), gradients(want))


def test_from_the_tokens_on_and_in_a_closure():
    x, found = tokens(1, 8), []
    for how in (lambda f, x: f(x), checkpoint, lambda f, x: checkpoint(lambda y: f(y), x)):
        gpt = GPT(SHAPES[0][0])
        how(gpt, x).square().mean().backward()
        found.append(gradients(gpt))
    assert found[0] and same(found[1], found[0]) and same(found[2], found[0])


def test_a_result_that_autograd_does_not_reach():
    x = torch.ones(3, requires_grad=True)
    (checkpoint(lambda x: x.detach() * 2, x) + x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3))
    assert not checkpoint(torch.argmax, x).requires_grad
    assert not checkpoint(lambda: torch.ones(2)).requires_grad


def test_autocast_of_the_right_device_where_inputs_are_on_several():
    """Which of them is looked at must not depend on their order in a set."""
    x, elsewhere = torch.ones(2, 2, requires_grad=True), torch.ones(2, device="meta")
    seen = []

    def product(x, mask):
        y = x @ x
        seen.append(y.dtype)
        return y

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = checkpoint(product, x, elsewhere)
    y.sum().backward()
    assert seen == [torch.bfloat16] * 2


# --- What is refused ----------------------------------------------------------------------------


class InPlace(nn.Module):
    def forward(self, x):
        x *= 0.5
        return x.tanh()


def test_a_module_that_changes_its_input():
    x = torch.ones(3, requires_grad=True) * 1
    with pytest.raises(ValueError, match=r"InPlace changes input 0 in place.* y = x \+ 1"):
        checkpoint(InPlace(), x)


def test_a_module_that_changes_a_buffer():
    x = torch.randn(8, 4, requires_grad=True)
    with pytest.raises(ValueError, match=r"BatchNorm1d changes buffer .* in place.*eval\(\)"):
        checkpoint(nn.BatchNorm1d(4), x)
    checkpoint(nn.BatchNorm1d(4).eval(), x)


def test_torch_updates_batch_norm_twice_and_says_nothing():
    """Why a buffer that changes is refused."""
    for how in (early_stop, reentrant):
        norm = nn.BatchNorm1d(4)
        how(norm, torch.randn(8, 4, requires_grad=True)).sum().backward()
        assert norm.num_batches_tracked == 2


def test_an_input_that_is_changed_later():
    x = torch.ones(3, requires_grad=True) * 1
    y = checkpoint(torch.tanh, x)
    x += 1
    with pytest.raises(ValueError, match="an input of tanh was changed in place after its"):
        y.sum().backward()


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_an_input_is_let_go_when_backward_has_read_it(how):
    """Else inputs would stay until the last gradient is there, and the peak be at the end."""
    x, left = torch.ones(3, requires_grad=True), []
    middle = how(nn.Tanh(), x * 1)
    stored = weakref.ref(middle)
    y = how(nn.Tanh(), middle)
    del middle
    x.register_hook(lambda grad: left.append(stored()))
    y.sum().backward()
    assert left == [None]


@pytest.mark.parametrize("hide", [lambda f: lambda x: f(x), lambda f: f.forward, partial])
def test_a_buffer_is_found_behind_a_function(hide):
    norm = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=r"changes buffer .* in place.*eval\(\)"):
        checkpoint(hide(norm), torch.randn(8, 4, requires_grad=True))
    assert not nn.modules.module._global_forward_pre_hooks


def test_an_input_inside_a_tuple():
    x = torch.ones(3, requires_grad=True) * 1
    with pytest.raises(ValueError, match="changes input 1 in place"):
        checkpoint(lambda y, pair: pair[0].mul_(2) + y, x, (x * 1, x))


def test_parameters_that_change_before_backward():
    """Two forwards, two backwards, and a step too early: without a checkpoint autograd refuses."""
    layer, x = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    first, second = (checkpoint(layer, x).sum() for _ in range(2))
    first.backward()
    optimizer.step()
    with pytest.raises(ValueError, match=r"parameter weight of Linear was changed after its"):
        second.backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m[1].running_mean.add_(1), "buffer 1.running_mean .* was changed after its"),
        (lambda m: m.train(), r"was set to train\(\) after its"),
    ],
)
def test_modules_that_change_before_backward(change, message):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    loss = checkpoint(module, torch.ones(2, 3)).sum()
    change(module)
    with pytest.raises(ValueError, match=message):
        loss.backward()


def test_tensors_that_are_shared_and_no_inputs():
    x = torch.ones(3, requires_grad=True)
    shared = torch.tanh(x)
    with pytest.raises(ValueError, match="with a tensor inside that has a graph"):
        checkpoint(lambda pair: torch.tanh(pair[0]), (shared,))
    first = checkpoint(lambda y: torch.tanh(y) * shared, x)
    with pytest.raises(RuntimeError, match="uses a tensor that others use as well"):
        checkpoint(lambda y: torch.tanh(y) * shared, first).sum().backward()


def test_a_backward_for_the_input_alone_fills_nothing_else():
    layer, x = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)
    want = layer.weight.detach().sum(0).expand(2, 3)
    for how in (checkpoint, lambda f, x: checkpoint(checkpoint, f, x)):
        with pytest.warns(UserWarning, match=r"Linear: its inputs get their gradients, its param"):
            (got,) = torch.autograd.grad(how(layer, x).sum(), x)
        assert torch.allclose(got, want)
        with pytest.warns(UserWarning, match=r"also if you asked for some.*use_reentrant=False"):
            how(layer, x).sum().backward(inputs=[x])
        assert torch.allclose(x.grad, want)
        assert layer.weight.grad is None and layer.bias.grad is None
        x.grad = None
    (got,) = torch.autograd.grad(checkpoint(torch.square, x).sum(), x)  # nothing to warn of
    assert torch.equal(got, 2 * x)


def test_backwards_that_a_checkpoint_cannot_serve():
    layer, x = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):  # torch's words
        torch.autograd.grad(checkpoint(layer, x).sum(), layer.weight)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*use_reentrant=False"):
        checkpoint(layer, x).sum().backward(create_graph=True)
    assert layer.weight.grad is None and x.grad is None


def test_the_same_graph_twice():
    layer, x = nn.Linear(3, 3), torch.ones(2, 3, requires_grad=True)
    loss = checkpoint(layer, x).sum()
    loss.backward(retain_graph=True)
    want = [g.clone() for g in (x.grad, layer.weight.grad)]
    loss.backward()
    assert torch.equal(x.grad, 2 * want[0]) and torch.equal(layer.weight.grad, 2 * want[1])


def test_more_than_one_result():
    with pytest.raises(ValueError, match="returns a tuple, not one tensor"):
        checkpoint(lambda x: (x, x), torch.ones(2, requires_grad=True))


@pytest.mark.parametrize("segments", [[4, 3], [0], [-1, 2], [1.5]])
def test_placements_that_do_not_fit(segments):
    config = SHAPES[0][0]
    with pytest.raises(ValueError, match=r"segments=\[.*give "):
        checkpoint_blocks(GPT(config), segments)
    with pytest.raises(ValueError, match=r"segments=\[.*give "):
        activation_peak(config, micro_batch=1, block=8, segments=segments)


@pytest.mark.parametrize("k", [0, 7])
def test_a_length_that_does_not_fit(k):
    with pytest.raises(ValueError, match=rf"k={k} .*give 1 to 6"):
        every(6, k)


# --- In ranks -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    with Ranks(2, default=False) as pool:
        yield pool.run


def in_ranks(wrapper, how, options):
    gpt = checkpoint_blocks(GPT(SHAPES[0][0]), [2, 2, 1], how)
    model = wrapper(gpt, **options)
    x = tokens(4, 16).chunk(2)[dist.get_rank()]
    model(x, x).backward()
    getattr(model, "sync_gradients", lambda: None)()
    alone = GPT(SHAPES[0][0])
    alone(tokens(4, 16), tokens(4, 16)).backward()
    pairs = zip(gradients(gpt), gradients(alone), strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


@pytest.mark.parametrize(
    ("wrapper", "options"),
    [
        (BucketedDataParallel, {}),
        (OverlappedDataParallel, {}),
        (DistributedDataParallel, {}),
        (DistributedDataParallel, {"static_graph": True}),
    ],
)
@pytest.mark.parametrize("name", HOW)
def test_in_ranks_it_is_one_process(two, wrapper, options, name):
    # Half a batch in each rank: float32 sums in another order
    assert max(two(in_ranks, wrapper, HOW[name], options)) < 1e-5


def twice(how, shared=False, **options):
    """What DDP says to two steps; ``shared``: two layers are the same module."""
    gpt = GPT(SHAPES[0][0])
    if shared:
        gpt.blocks[2] = gpt.blocks[1]
    model = DistributedDataParallel(checkpoint_blocks(gpt, [1] * 6, how), **options)
    try:
        for _ in range(2):
            model(tokens(1, 8), tokens(1, 8)).backward()
    except RuntimeError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("options", [{"find_unused_parameters": True}, {"shared": True}])
def test_what_ddp_cannot_do_with_a_reentrant_checkpoint(options):
    """It walks the graph, in which such a checkpoint hides its parameters, or sees them twice."""
    with Ranks(2, default=False) as pool:  # of its own: a reducer is left in the middle of a step
        assert pool.run(twice, early_stop, **options) == [""] * 2
        assert pool.run(twice, checkpoint, static_graph=True, **options) == [""] * 2
        for how in (reentrant, checkpoint):
            said = pool.run(twice, how, **options)
            assert all("mark a variable ready only once" in text for text in said)


# --- On fake tensors ----------------------------------------------------------------------------


def test_on_fake_tensors_the_same_bytes():
    from torch._subclasses.fake_tensor import FakeTensorMode

    config, sequences, block = SHAPES[0]
    batch = dict(micro_batch=sequences, block=block)
    for segments in ([], [2, 2, 2]):
        with FakeTensorMode(allow_non_fake_inputs=True):
            got, flops, _ = step(config, sequences, block, segments)
        assert got == pytest.approx(activation_peak(config, **batch, segments=segments), rel=0.002)
        assert flops == step_flops(config, **batch, segments=segments)


def of_zero_models():
    """What is said of a checkpoint around each stage, in every rank."""
    said = []
    for kind in (ZeRO1, ZeRO2, ZeRO3):
        model = kind(nn.Linear(4, 4))
        try:
            checkpoint(model, torch.ones(2, 4, requires_grad=True))
        except ValueError as error:
            said.append(str(error))
    return said


def test_a_checkpoint_around_a_zero_model_is_refused_by_its_own_name(two):
    for said in two(of_zero_models):
        heads = [line.split(":")[0] for line in said]
        assert heads == [f"checkpoint() of a ZeRO{stage}" for stage in (1, 2, 3)]
        assert all("checkpoint_blocks(gpt, segments)" in line for line in said)
