"""Our autocast and our loss scaler must do what torch's do, and formulas what the ledger counts.

Tolerances. Ours and torch's run the same kernels on the same numbers: bit for bit. 16-bit training
against float32: bfloat16 keeps 8 significant bits, so each product is off by up to 0.4% and losses
of the first steps by less than that.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections import Counter
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.figures.mixed_precision import FORMATS
from dlcourse.formulas.activations import activation_peak
from dlcourse.formulas.number_formats import largest_number, smallest_number, spacing
from dlcourse.formulas.recipe import PRECISIONS as WAYS
from dlcourse.formulas.states import state_bytes
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.moe import Router
from dlcourse.parallel.tensor import tensor_parallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training import loop
from dlcourse.training.mixed_precision.autocast import Autocast
from dlcourse.training.mixed_precision.dtype_log import DtypeLog
from dlcourse.training.mixed_precision.loss_scaler import LossScaler
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW
from dlcourse.training.mixed_precision.support import check_precision, has_units
from dlcourse.training.mixed_precision.training_step import mixed_step, prepare, train

pytestmark = pytest.mark.usefixtures("nothing_before")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small matrices: more threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def two():
    with Ranks(2, default=False) as pool:
        yield pool.run


def batch(sequences=2, block=16):
    return Corpus(limit=100_000).batch(0, micro_batch=sequences, block=block)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


# --- Autocast -----------------------------------------------------------------------------------


def forward_and_backward(autocast):
    model = GPT(SMALL)
    with autocast, DtypeLog() as forward:
        loss = model(*batch())
    with DtypeLog() as backward:
        loss.backward()
    return forward, backward, loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_operator_of_a_gpt_runs_in_the_type_that_torch_gives_it(dtype):
    ours = forward_and_backward(Autocast("cpu", dtype))
    theirs = forward_and_backward(torch.autocast("cpu", dtype))
    assert ours[0].calls == theirs[0].calls
    assert Counter(ours[1].calls) == Counter(theirs[1].calls)  # casts come back in another order
    assert ours[2] == theirs[2]
    assert all(torch.equal(a, b) for a, b in zip(ours[3], theirs[3], strict=True))


def functions(x, h):
    """Operators of all lists on float32 ``x`` and 16-bit ``h``, both (2, 8, 8).

    No indexing: it asks CUDA for its current device, also for fake tensors.
    """
    matrix, targets = x.select(0, 0), torch.zeros(8, dtype=torch.int64, device=x.device)
    return {
        "linear": lambda: F.linear(x, matrix),
        "matmul": lambda: x @ matrix,
        "rmatmul": lambda: torch.matmul(matrix, h),
        "bmm": lambda: torch.bmm(x, h),
        "addmm": lambda: torch.addmm(matrix, matrix, matrix),
        "einsum": lambda: torch.einsum("bij,jk->bik", x, matrix),
        "conv1d": lambda: F.conv1d(x, x.narrow(2, 0, 3)),
        "softmax": lambda: F.softmax(h, -1),
        "Tensor.softmax": lambda: h.softmax(-1),
        "log_softmax": lambda: F.log_softmax(h, -1),
        "layer_norm": lambda: F.layer_norm(h, (8,)),
        "sum": lambda: h.sum(),
        "exp": lambda: h.exp(),
        "pow": lambda: h**2,
        "cross_entropy": lambda: F.cross_entropy(h.select(0, 0), targets),
        "mse_loss": lambda: F.mse_loss(h, x),
        "l1_loss": lambda: F.l1_loss(h, h),
        "gelu": lambda: F.gelu(h),
        "relu": lambda: h.relu(),
        "add": lambda: h + x,
        "mul": lambda: h * h,
        "cat": lambda: torch.cat([x, h]),
        "cat of halves": lambda: torch.cat([h, h]),
        "stack": lambda: torch.stack([h, x]),
        "dot": lambda: torch.dot(h.flatten(), x.flatten()),
        "tensordot": lambda: torch.tensordot(h, x),
        "mean": lambda: h.mean(),
        "double": lambda: F.linear(x.double(), matrix.double()),
    }


def result_types(autocast, x, h):
    found = {}
    for name, function in functions(x, h).items():
        with autocast:
            try:
                found[name] = function().dtype
            except RuntimeError:
                found[name] = "refused"
    return found


@pytest.mark.parametrize("dtype", HALVES)
def test_the_lists_are_those_of_torch_on_a_cpu(dtype):
    x = torch.rand(2, 8, 8)
    want = result_types(torch.autocast("cpu", dtype), x, x.to(dtype))
    assert result_types(Autocast("cpu", dtype), x, x.to(dtype)) == want
    assert "refused" in want.values()


class CudaAutocast:
    """torch's own rules for CUDA tensors, also where there is no GPU: for fake tensors."""

    def __enter__(self):
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", torch.float16)

    def __exit__(self, *exception):
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


def test_the_lists_are_those_of_torch_on_a_gpu():
    with FakeTensorMode():
        x = torch.rand(2, 8, 8, device="cuda")
        want = result_types(CudaAutocast(), x, x.half())
        assert result_types(Autocast("cuda", torch.float16), x, x.half()) == want
    assert want["softmax"] == torch.float32  # not so on a CPU
    x = torch.rand(2, 8, 8)
    assert result_types(Autocast("cpu"), x, x.bfloat16())["softmax"] == torch.bfloat16


def test_what_switches_torch_s_autocast_off_switches_ours_off():
    """A router computes in float32; afterwards all is as it was before, also inside of torch's."""
    router, x = Router(8, 4, 2), torch.randn(5, 8)
    with torch.autocast("cpu", torch.float16), Autocast("cpu", torch.bfloat16):
        assert router(x).logits_NE.dtype == torch.float32
        assert F.linear(x, router.weight).dtype == torch.bfloat16
    with Autocast("cpu", torch.bfloat16):
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_a_result_s_place_is_written_to():
    a, out = torch.randn(4, 4), torch.zeros(4, 4)
    with Autocast("cpu", torch.bfloat16):
        torch.mm(a, a, out=out)
    assert torch.equal(out, a @ a)


def test_a_weight_that_is_used_twice_is_converted_once():
    weight = nn.Parameter(torch.rand(8, 8))
    x = torch.rand(4, 8, dtype=torch.bfloat16)
    with Autocast("cpu") as autocast, DtypeLog() as log:
        with torch.no_grad():
            F.linear(x, weight)  # a copy without a graph: must not be used below
        loss = F.linear(F.linear(x, weight), weight).sum()
    casts = [call for call in log.calls if call.op == "_to_copy"]
    assert len(casts) == 2  # one without a graph, one for both uses
    assert not autocast.copies
    loss.backward()
    assert weight.grad.dtype == torch.float32


# --- The loss scaler ----------------------------------------------------------------------------


def adversarial():
    """Steps with an infinity or a NaN among quiet stretches; True: this step is bad."""
    quiet = [False]
    return quiet * 4 + [True] + quiet * 3 + [True] * 6 + quiet * 7 + [True, False] * 4 + quiet * 9


def walk(scaler, bad_steps):
    """The scale after each step, and the parameter."""
    weight = nn.Parameter(torch.ones(3))
    other = nn.Parameter(torch.ones(2))  # without a gradient
    optimizer = torch.optim.SGD([weight, other], lr=0.1)
    scales, weights = [], []
    for number, bad in enumerate(bad_steps):
        optimizer.zero_grad()
        loss = (weight * torch.tensor([1.0, 2.0, 3.0])).sum()
        scaler.scale(loss).backward()
        if bad:
            weight.grad[number % 3] = float("inf") if number % 2 else float("nan")
        if number % 3 == 0:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        weights.append(weight.detach().clone())
    return scales, weights


@pytest.mark.parametrize("interval", [1, 3])
def test_the_scaler_takes_the_same_steps_as_torch_s(interval):
    options = dict(init_scale=2.0**10, growth_interval=interval)
    scales, weights = walk(LossScaler(**options), adversarial())
    want_scales, want_weights = walk(torch.amp.GradScaler("cpu", **options), adversarial())
    assert scales == want_scales
    assert len(set(scales)) > 5
    assert torch.equal(torch.stack(weights), torch.stack(want_weights))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_loss_is_scaled_in_float32(dtype):
    loss = torch.tensor(2.0, dtype=dtype)
    want = torch.amp.GradScaler("cpu").scale(loss)
    found = LossScaler().scale(loss)
    assert found.dtype == want.dtype and found == want == 2.0**17  # float16 ends at 65504


def test_the_scale_stops_where_float32_ends():
    scaler, theirs = (
        make(init_scale=2.0**126, growth_interval=1)
        for make in (LossScaler, lambda **o: torch.amp.GradScaler("cpu", **o))
    )
    for one in (scaler, theirs):
        weight = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight])
        for _ in range(4):
            one.scale(weight.detach())
            weight.grad = torch.ones(1)
            one.step(optimizer)
            one.update()
    assert scaler.get_scale() == theirs.get_scale() == 2.0**127


def test_small_gradients_are_lost_without_a_scale_and_kept_with_one():
    weight = torch.full((4, 4), 1e-4)
    got = []
    for scaler in (LossScaler(1.0), LossScaler(2.0**12)):
        x = nn.Parameter(torch.full((4, 4), 1e-4))
        optimizer = torch.optim.SGD([x])
        with Autocast("cpu", torch.float16):
            loss = (x @ weight).float().mean() * 1e-3
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        got.append(x.grad.max().item())
    assert got[0] == 0
    assert got[1] == pytest.approx(4 * 1e-4 * 1e-3 / 16, rel=0.01)


def two_optimizers(scaler, *, unscale, bad):
    """Parameters, whether there was a step, and the scale: one loss, two optimizers."""
    parameters = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in parameters]
    loss = sum((p * torch.tensor([0.25, 0.5])).sum() for p in parameters)
    scaler.scale(loss).backward()
    if bad is not None:
        parameters[bad].grad[0] = float("inf")
    for optimizer in optimizers if unscale else ():
        scaler.unscale_(optimizer)
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    return [p.tolist() for p in parameters], scaler.get_scale()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("bad", [None, 0, 1])
def test_two_optimizers_share_a_scaler(unscale, bad):
    found = two_optimizers(LossScaler(8.0), unscale=unscale, bad=bad)
    assert found == two_optimizers(torch.amp.GradScaler("cpu", 8.0), unscale=unscale, bad=bad)
    want = [[0.75, 0.5], [0.75, 0.5]]
    if bad is not None:
        want[bad] = [1.0, 1.0]
    assert found == (want, 8.0 if bad is None else 4.0)


@pytest.mark.parametrize("start", [2.0**-1074, 2.0**-130, 2.0**-120, 2.0**127, 1e300])
def test_a_scale_that_falls_to_nothing_still_trains(start):
    """torch's falls to 0, divides by it, and the parameters are NaN."""
    p = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([p], lr=1.0), LossScaler(start)
    for bad in [True] * 300 + [False]:
        optimizer.zero_grad()
        scaler.scale((p * 0.5).sum()).backward()
        if bad:
            p.grad[0] = float("inf")
        assert scaler.step(optimizer) is not bad
        scaler.update()
    assert p.item() == 0.5 and scaler.get_scale() == 2.0**-126


def test_the_scaler_takes_what_torch_s_takes():
    """Sparse gradients, a list of losses, and an empty group before the others."""
    for infinite in (False, True):
        table, weight = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2))
        groups = [{"params": []}, {"params": [table.weight, weight]}]
        before = table.weight.detach().clone()
        optimizer, scaler = torch.optim.SGD(groups, lr=0.5), LossScaler(4.0)
        factor = float("inf") if infinite else 1.0
        losses = [factor * table(torch.tensor([1, 1])).sum(), weight.sum()]
        torch.autograd.backward(scaler.scale(losses))
        assert scaler.step(optimizer) is not infinite
        change = (table.weight.detach() - before)[1]
        torch.testing.assert_close(change, torch.full((2,), 0.0 if infinite else -1.0))


def test_an_abandoned_step_is_not_taken_for_unscaled():
    p = nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([p], lr=1.0), LossScaler(1024.0)

    def backward():
        optimizer.zero_grad()
        scaler.scale((p * 0.5).sum()).backward()

    backward()
    scaler.unscale_(optimizer)  # and here the step was interrupted
    backward()
    with pytest.raises(RuntimeError, match=r"made after unscale_.*call update\(\) now"):
        scaler.step(optimizer)
    scaler.update()
    backward()
    assert scaler.step(optimizer) and p.item() == 0.5
    with pytest.raises(RuntimeError, match=r"step\(\) was called before"):
        scaler.step(optimizer)
    assert p.item() == 0.5


@pytest.mark.parametrize("make", [LossScaler, lambda scale: torch.amp.GradScaler("cpu", scale)])
def test_a_scaler_s_state_is_loaded(make):
    options = dict(init_scale=2.0**10, growth_interval=3)
    steps = [False] * 2, [False, True, False, False, False]
    first = LossScaler(**options)
    want_scales, _ = walk(LossScaler(**options), steps[0] + steps[1])
    walk(first, steps[0])
    second = make(1.0)
    if make is not LossScaler:
        second._lazy_init_scale_growth_tracker(torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    third = LossScaler(1.0)
    third.load_state_dict(second.state_dict())
    assert walk(third, steps[1])[0] == want_scales[len(steps[0]) :]
    with pytest.raises(ValueError, match="state_dict lacks _growth_tracker, "):
        third.load_state_dict({})


def two_optimizers_one_bad_rank():
    """Rank 1 has an infinity in its part of the second optimizer's gradients."""
    scaler, parameters = LossScaler(1024.0, process_group=dist.group.WORLD), []
    for number in range(2):
        p = nn.Parameter(torch.ones(2))
        bad = dist.get_rank() == 1 and number == 1
        p.grad = torch.full((2,), float("nan") if bad else 1024.0)
        parameters.append(p)
    stepped = [scaler.step(torch.optim.SGD([p], lr=0.5)) for p in parameters]
    scaler.update()
    return stepped, scaler.get_scale(), [p.tolist() for p in parameters]


def steps_of(wrapper):
    """Losses of three mixed steps of a model, all ranks with one batch."""
    torch.manual_seed(0)
    gpt = GPT(SMALL)
    model = wrapper(gpt)
    optimizer = torch.optim.SGD(getattr(model, "shards", None) or model.parameters(), lr=0.5)
    return [mixed_step(model, batch(), optimizer).item() for _ in range(3)]


@pytest.mark.parametrize("stage", [ZeRO1, ZeRO2, ZeRO3])
def test_a_mixed_step_of_a_zero_model_brings_the_parameters_together(two, stage):
    """Within rounding of float32; the ranks had gone on with each other's old parts: off by 0.4."""
    alone = steps_of(lambda gpt: gpt)
    assert two(steps_of, stage) == [pytest.approx(alone, abs=1e-5)] * 2


def test_ranks_skip_the_same_optimizer(two):
    found = two(two_optimizers_one_bad_rank)
    assert found == [([True, False], 512.0, [[0.5, 0.5], [1.0, 1.0]])] * 2


def one_bad_rank(shared):
    rank = dist.get_rank()
    scaler = LossScaler(1024.0, process_group=dist.group.WORLD if shared else None)
    shard = nn.Parameter(torch.ones(2))
    shard.grad = torch.full((2,), float("inf") if rank == 1 else 1.0)
    stepped = scaler.step(torch.optim.SGD([shard]))
    scaler.update()
    return stepped, scaler.get_scale()


def test_ranks_with_shards_skip_together(two):
    assert two(one_bad_rank, True) == [(False, 512.0)] * 2
    assert two(one_bad_rank, False) == [(True, 1024.0), (False, 512.0)]


def scalers_over_parts():
    """What scalers that ask no other rank say of parts of a model; and one that asks."""
    found = []
    for kind in ("tensor", "zero"):
        model = tensor_parallel(GPT(SMALL)) if kind == "tensor" else ZeRO1(GPT(SMALL))
        optimizer = torch.optim.SGD(model.shards if kind == "zero" else model.parameters())
        for scaler in (LossScaler(), torch.amp.GradScaler("cpu")):
            try:
                mixed_step(model, batch(), optimizer, scaler=scaler)
                found.append("")
            except ValueError as error:
                found.append(str(error))
    optimizer.zero_grad()
    return found, LossScaler(process_group=dist.group.WORLD).step(optimizer)


def test_parts_of_a_model_need_a_scaler_that_asks_the_other_ranks(two):
    for messages, stepped in two(scalers_over_parts):
        assert [m.startswith("optimizer updates this rank's part") for m in messages] == [True] * 4
        assert stepped


# --- Training -----------------------------------------------------------------------------------


def losses_of(way, **options):
    job = dict(steps=4, batch_size=2, block=16)
    return train(GPT(SMALL), Corpus(limit=100_000), precision=way, **job, **options)


def test_each_way_trains_as_float32_does():
    want = loop.train(GPT(SMALL), Corpus(limit=100_000), steps=4, batch_size=2, block=16)
    assert losses_of("float32") == want
    for way in ("autocast", "master", "bfloat16"):
        got = losses_of(way)
        assert got != want
        assert got == pytest.approx(want, rel=0.01)
    got = losses_of("autocast", dtype=torch.float16, scaler=LossScaler())
    assert got == pytest.approx(want, rel=1e-4)  # 11 significant bits instead of 8


def test_an_overflow_is_skipped_and_recovered_from():
    model, scaler = GPT(SMALL), LossScaler(2.0**20)
    optimizer = torch.optim.AdamW(model.parameters())
    start, skipped = flat(model.parameters()), 0
    for _ in range(20):
        before = scaler.get_scale()
        mixed_step(
            model, batch(), optimizer, autocast=Autocast("cpu", torch.float16), scaler=scaler
        )
        moved = not torch.equal(flat(model.parameters()), start)
        assert moved == (scaler.get_scale() == before)
        if moved:
            break
        skipped += 1
    assert skipped >= 2
    assert flat(model.parameters()).isfinite().all()


def test_gradients_are_clipped_after_they_are_unscaled():
    found = []
    for scaler in (None, LossScaler(), torch.amp.GradScaler("cpu")):
        model = GPT(SMALL)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        mixed_step(model, batch(), optimizer, scaler=scaler, max_norm=0.5)
        found.append(flat(model.parameters()))
    assert torch.allclose(found[0], found[1], atol=1e-7)  # a power of two: exact, but for sums
    assert torch.equal(found[1], found[2])


def test_a_bfloat16_parameter_does_not_move_and_its_master_does():
    for way, moved in (("bfloat16", False), ("master", True)):
        norm = nn.LayerNorm(4)
        norm, optimizer = prepare(norm, way, lr=1e-4)
        for _ in range(60):
            norm.weight.grad = torch.ones(4, dtype=torch.bfloat16)
            optimizer.step()
        assert (norm.weight != 1).any().item() is moved


# --- Master weights -----------------------------------------------------------------------------


def master_steps(p, optimizer, steps):
    for number in steps:
        p.grad = torch.randn(50, generator=torch.Generator().manual_seed(number)).to(p.dtype)
        optimizer.step()


def started(dtype=torch.bfloat16):
    p = nn.Parameter(torch.linspace(-1, 1, 50).to(dtype))
    optimizer = MasterAdamW([p], lr=1e-3)
    master_steps(p, optimizer, range(3))
    return p, optimizer


def test_float64_parameters_take_the_steps_of_float64():
    p, q = (nn.Parameter(torch.linspace(-1, 1, 50).double()) for _ in range(2))
    master_steps(p, MasterAdamW([p], lr=1e-3), range(3))
    master_steps(q, torch.optim.AdamW([q], lr=1e-3), range(3))
    assert (p - q).abs().max() < 1e-14  # a few roundings; masters in float32 are 2e-8 off


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_a_loaded_state_is_the_saved_one_with_all_digits_and_in_its_own_memory(dtype):
    p, optimizer = started(dtype)
    saved, value = optimizer.state_dict(), p.detach().clone()
    q = nn.Parameter(value)
    other = MasterAdamW([q], lr=7.0)
    other.load_state_dict(saved)  # not a copy: both optimizers go on, and do not meet
    assert other.param_groups[0]["lr"] == 1e-3
    for name, tensor in optimizer.state[p].items():
        if name != "step":
            assert other.state[q][name].dtype == torch.promote_types(dtype, torch.float32)
            assert torch.equal(other.state[q][name], tensor)
    master_steps(p, optimizer, range(3, 9))
    master_steps(q, other, range(3, 9))
    assert torch.equal(p, q) and torch.equal(optimizer.state[p]["master"], other.state[q]["master"])
    assert optimizer.state[p]["step"] == other.state[q]["step"] == 9


def test_the_state_of_another_optimizer_has_no_master():
    p, optimizer = started()
    plain = torch.optim.AdamW([p])
    plain.step()
    with pytest.raises(ValueError, match=r"state_dict holds step, exp_avg.* no master"):
        optimizer.load_state_dict(plain.state_dict())
    master_steps(p, optimizer, [3])  # nothing has changed


def test_weights_that_are_loaded_later_are_the_new_master():
    """As in torch's AdamW: a step starts from what is in the parameter."""
    new = torch.linspace(3, 4, 50)
    p, optimizer = started()
    with torch.no_grad():
        p.copy_(new)
    q = nn.Parameter(torch.linspace(-1, 1, 50).bfloat16().float())
    plain = torch.optim.AdamW([q], lr=1e-3)
    master_steps(q, plain, range(3))
    with torch.no_grad():
        q.copy_(new.bfloat16())
    for one, its in ((p, optimizer), (q, plain)):
        one.grad = torch.zeros_like(one)
        its.step()
    apart = (optimizer.state[p]["master"] - q).abs().max()
    assert apart < 1e-4  # a tenth of a step: gradients of the first steps were rounded


@pytest.mark.parametrize(
    ("dtype", "options", "message"),
    [
        (torch.complex64, {}, "is torch.complex64, and its master would be"),
        (torch.float32, {"lr": -1.0}, "lr=-1.0: give 0 or more"),
        (torch.float32, {"betas": (0.9, 1.0)}, "betas="),
    ],
)
def test_what_a_master_cannot_be_made_for(dtype, options, message):
    with pytest.raises(ValueError, match=message):
        MasterAdamW([nn.Parameter(torch.ones(2, dtype=dtype))], **options)


def test_a_master_has_no_sparse_gradients():
    table = nn.Embedding(4, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="a gradient is sparse"):
        MasterAdamW(table.parameters()).step()


@pytest.mark.parametrize("make", [MasterAdamW, torch.optim.AdamW])
def test_a_parameter_without_a_gradient_is_not_decayed(make):
    used, unused = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = make([used, unused], lr=0.1, weight_decay=0.5)
    for _ in range(2):
        used.grad = torch.ones(2)
        optimizer.step()
    assert torch.equal(unused, torch.ones(2)) and not torch.equal(used, torch.ones(2))


# --- Bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_the_formulas_are_what_the_ledger_counts(way):
    config = GPTConfig(n_layer=2, n_head=2, n_embd=64)
    model, optimizer = prepare(GPT(config), way)
    autocast = Autocast("cpu") if way == "autocast" else None
    data = batch(sequences=2, block=128)
    mixed_step(model, data, optimizer, autocast=autocast)
    gc.collect()
    with Recorder(0, 1) as recorder:
        mixed_step(model, data, optimizer, autocast=autocast)
    memory = recorder.record["memory"]
    counters = 0 if way == "master" else 4 * len(list(model.parameters()))
    for name, size in state_bytes(model.num_parameters(), precision=way).items():
        assert memory["end"][name] == size + (counters if name == "optimizer_state" else 0)
    want = activation_peak(config, micro_batch=2, block=128, precision=way)
    assert memory["peaks"]["activations"] == pytest.approx(want, rel=1e-3)


# --- Bad input ----------------------------------------------------------------------------------


class NoHalf(TorchDispatchMode):
    """What a device without float16 does: no product of such matrices."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._opname in ("mm", "addmm") and args[0].dtype == torch.float16:
            raise NotImplementedError("\"addmm_impl_cpu_\" not implemented for 'Half'")
        return func(*args, **(kwargs or {}))


def test_float16_on_a_device_without_it():
    with NoHalf():
        check_precision(torch.bfloat16, "cpu")
        with pytest.raises(ValueError, match=r"float16 .*'cpu'.*'Half'.*dtype=torch.bfloat16"):
            Autocast("cpu", torch.float16)
        with pytest.raises(ValueError, match=r"dtype=torch.float16 does not work"):
            losses_of("autocast", dtype=torch.float16, scaler=LossScaler())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_a_type_that_torch_would_switch_off_silently(dtype):
    with pytest.raises(ValueError, match=rf"{dtype} .*give torch.bfloat16 or torch.float16"):
        Autocast("cpu", dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", dtype=dtype):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"device='cuda' is not usable here .*give device='cpu'"):
        Autocast("cuda", torch.float16)


def test_what_the_scaler_refuses():
    for option in (
        dict(init_scale=0.0),
        dict(growth_factor=1.0),
        dict(backoff_factor=1.0),
        dict(growth_interval=0),
        dict(growth_interval=1.5),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(option))}="):
            LossScaler(**option)
    half = nn.Parameter(torch.ones(2, dtype=torch.float16))
    half.grad = torch.ones_like(half)
    for scaler in (LossScaler(), torch.amp.GradScaler("cpu")):
        scaler.scale(torch.ones(()))
        with pytest.raises(ValueError, match=r"(?i)float16|fp16"):
            scaler.unscale_(torch.optim.SGD([half]))
    scaler, optimizer = LossScaler(), torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(RuntimeError, match="before update"):
        scaler.update()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="call update"):
        scaler.unscale_(optimizer)


def test_a_way_that_there_is_not():
    for call in (
        lambda: prepare(nn.Linear(2, 2), "fp16"),
        lambda: state_bytes(1, precision="fp16"),
        lambda: activation_peak(SMALL, micro_batch=1, block=1, precision="fp16"),
    ):
        with pytest.raises(ValueError, match=r"='fp16'.*float32, autocast, master, bfloat16"):
            call()
    with pytest.raises(ValueError, match=r"without a scaler.*LossScaler"):
        losses_of("autocast", dtype=torch.float16)


def test_units_are_told_for_every_kind_of_device():
    assert isinstance(has_units(torch.bfloat16, "cpu"), bool)
    assert has_units(torch.float16, "mps")
    assert not has_units(torch.bfloat16, "mps")


def steps_of_two_optimizers(make, unscale, infinite):
    """Parameters and scale after a step with two optimizers, one of which may see an infinity."""
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizers = [torch.optim.SGD([p], lr=1.0) for p in parameters]
    scaler = make(init_scale=8.0)
    loss = sum((p * torch.tensor([0.25, 0.5])).sum() for p in parameters)
    scaler.scale(loss).backward()
    if infinite is not None:
        parameters[infinite].grad[0] = float("inf")
    for optimizer in optimizers if unscale else ():
        scaler.unscale_(optimizer)
    for optimizer in optimizers:
        scaler.step(optimizer)
    with pytest.raises(RuntimeError):
        scaler.step(optimizers[0])
    scaler.update()
    return [p.tolist() for p in parameters], scaler.get_scale()


@pytest.mark.parametrize("infinite", [None, 0, 1])
@pytest.mark.parametrize("unscale", [False, True])
def test_two_optimizers_share_a_scaler_as_in_torch(unscale, infinite):
    wanted = steps_of_two_optimizers(partial(torch.amp.GradScaler, "cpu"), unscale, infinite)
    assert steps_of_two_optimizers(LossScaler, unscale, infinite) == wanted


def test_the_scale_never_falls_to_zero():
    """Then every gradient would be 0 times infinity; torch's scaler goes there."""
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer, scaler = torch.optim.SGD([parameter], lr=1.0), LossScaler(init_scale=1.0)
    for step in range(201):
        optimizer.zero_grad()
        scaler.scale((parameter * 0.5).sum()).backward()
        if step < 200:
            parameter.grad[0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert parameter.item() == 0.5
    assert scaler.get_scale() == 2.0**-126


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_those_of_torch(name):
    dtype, (exponent, mantissa) = getattr(torch, name), FORMATS[name]
    info = torch.finfo(dtype)
    assert largest_number(exponent, mantissa) == info.max
    assert smallest_number(exponent, mantissa) == info.smallest_normal * info.eps
    assert spacing(1, mantissa) == info.eps
    number = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    for x in (1.0, 1.5, 100.0, 0.001, 2.0**-12):
        here = torch.tensor(x, dtype=dtype)
        after = (here.view(number) + 1).view(dtype)  # the next pattern of bits is the next number
        assert after.double() - here.double() == spacing(here.item(), mantissa)
