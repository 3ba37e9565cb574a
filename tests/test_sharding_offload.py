"""Layers over devices, offload to a host, and loading by shards, against one process.

All of them compute what one process computes, with the same operations on the same numbers in the
same order: losses and parameters must be equal bit for bit. Adam works on rows of whole units, not
on single tensors; it goes element by element, so that must not matter either.
"""

from __future__ import annotations

import gc
import json
import re
import sys
import weakref
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import cloudpickle
import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn

from dlcourse import RankError, Ranks, expect_failure
from dlcourse.collectives import p2p
from dlcourse.corpus import Corpus
from dlcourse.formulas.activations import activation_peak, stream_bytes
from dlcourse.formulas.devices import at_peak, check_limits, device_needs, layer_ranges
from dlcourse.formulas.states import offloaded_state_bytes
from dlcourse.measure.recorder import Recorder, live_bytes
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.pipeline_stages import Stage
from dlcourse.training.sharding_offload.layers_over_devices import (
    LayersOverDevices,
    LayersOverRanks,
)
from dlcourse.training.sharding_offload.local_host import LocalHost
from dlcourse.training.sharding_offload.optimizer_offload import OptimizerOffload
from dlcourse.training.sharding_offload.parameter_offload import ParameterOffload
from dlcourse.training.sharding_offload.rank_as_host import RankHost, serve
from dlcourse.training.sharding_offload.sharded_files import (
    INDEX,
    File,
    load_module,
    save_file,
    save_shards,
)
from dlcourse.words import strings

pytestmark = pytest.mark.usefixtures("nothing_before")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = GPTConfig(n_layer=5, n_head=2, n_embd=32, block_size=32)
DEEP = GPTConfig(n_layer=100, n_head=2, n_embd=24, block_size=32)
STEPS = 3


@pytest.fixture(scope="module")
def three():
    with Ranks(3, default=False) as pool:
        yield pool.run


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: two threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(step, sequences=4, block=32):
    return Corpus(limit=100_000).batch(step, micro_batch=sequences, block=block)


def one_process(config=SMALL, steps=STEPS):
    """Losses, and the model after the last step."""
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def equal(model, other):
    other = dict(other.named_parameters())
    return all(torch.equal(p, other[name]) for name, p in model.named_parameters())


def size(model):
    return sum(p.numel() for p in model.parameters())


# --- Layers over devices ------------------------------------------------------------------------


def test_layers_are_cut_as_the_sizes_say():
    assert layer_ranges(100, [33, 33, 34]) == [range(33), range(33, 66), range(66, 100)]


@pytest.mark.parametrize("sizes", [[33, 33, 33], [50, 50, 0], [], [101, -1, 0]])
def test_sizes_that_do_not_fit_are_refused(sizes):
    with pytest.raises(ValueError, match=r"adds up to \d+ layers and the model has 100: give"):
        layer_ranges(100, sizes)


def test_layers_over_devices_equal_one_process():
    losses, alone = one_process()
    model = LayersOverDevices(GPT(SMALL), [2, 1, 2], ["cpu"] * 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(*batch(step))
        loss.backward()
        optimizer.step()
        assert loss.item() == losses[step]
    for stage in model.stages:
        assert equal(stage, alone)
    with pytest.raises(ValueError, match="3 sizes for 2 devices"):
        LayersOverDevices(GPT(SMALL), [2, 1, 2], ["cpu"] * 2)


def test_activations_and_targets_move_to_each_device():
    """An operator that mixes the meta device with the CPU fails."""
    model = LayersOverDevices(GPT(SMALL), [2, 1, 2], ["cpu", "meta", "meta"])
    assert model(*batch(0)).is_meta
    assert [next(stage.parameters()).is_meta for stage in model.stages] == [False, True, True]


def send_around(over_cpu):
    """Each rank sends to the next; what was received before and after the wait."""
    rank, decided = dist.get_rank(), p2p.goes_over_cpu
    if over_cpu:  # as for a tensor on a GPU that the ranks share
        p2p.goes_over_cpu = lambda tensor, group: True
    try:
        received = torch.full((3,), -1.0)
        coming = p2p.irecv(received, (rank - 1) % 3)
        going = p2p.isend(torch.full((3,), float(rank)), (rank + 1) % 3)
        going.wait()
        dist.barrier()
        before = received.tolist()
        coming.wait()
        return before, received.tolist()
    finally:
        p2p.goes_over_cpu = decided


@pytest.mark.parametrize("over_cpu", [False, True])
def test_a_message_arrives(three, over_cpu):
    for rank, (before, after) in enumerate(three(send_around, over_cpu)):
        assert after == [(rank - 1) % 3] * 3
        assert not over_cpu or before == [-1.0] * 3  # it came to another place first


def over_ranks(config, sizes, steps):
    model = LayersOverRanks(GPT(config), sizes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, spans = [], []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        gc.collect()
        with Recorder(dist.get_rank(), 3) as recorder:
            losses.append(model.step(*batch(step)).item())
            optimizer.step()
        spans.append(model.spans)
    same = config.n_layer == 100 or equal(model.stage, one_process(config, steps)[1])
    return losses, same, recorder.record, spans


def test_layers_over_ranks_equal_one_process(three):
    found = three(over_ranks, SMALL, [2, 1, 2], STEPS)
    losses, _ = one_process()
    assert found[2][0] == losses
    assert all(rank[1] for rank in found)
    for step in range(STEPS):  # one works, the others wait: a pipeline of one
        work = sorted(span[:2] for rank in found for span in rank[3][step])
        assert all(a[1] <= b[0] for a, b in pairwise(work))
        assert [kind for _, _, (kind, _, _) in found[1][3][step]] == ["F", "BW"]


def clipped_over_ranks():
    """Norm and gradients beside one process's, with matrices in bfloat16 and norms in float32."""
    alone, ours = GPT(SMALL).bfloat16(), GPT(SMALL).bfloat16()
    for gpt in (alone, ours):
        for layer in gpt.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.float()
    model = LayersOverRanks(ours, [2, 1, 2])
    alone(*batch(0)).backward()
    model.step(*batch(0))
    theirs = dict(alone.named_parameters())
    same = all(torch.equal(p.grad, theirs[n].grad) for n, p in model.stage.named_parameters())
    wanted = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    return same, (clip_grad_norm_(model, 0.1) / wanted).item()


def test_layers_of_two_types_over_ranks_and_their_norm(three):
    for same, ratio in three(clipped_over_ranks):
        assert same and ratio == pytest.approx(1, rel=2**-6)  # sums of squares in bfloat16


def test_a_hundred_layers_need_what_was_predicted(three):
    found = three(over_ranks, DEEP, [33, 33, 34], 2)
    needs = device_needs(DEEP, [33, 33, 34], micro_batch=4, block=32)
    message = stream_bytes(DEEP, micro_batch=4, block=32)
    for rank, ((_, _, record, _), need) in enumerate(zip(found, needs, strict=True)):
        kept = record["memory"]["end"]
        for name in ("parameters", "gradients", "optimizer_state"):
            assert kept[name] == need[name]
        peaks = record["memory"]["peaks"]
        peak = peaks["activations"] + peaks["communication"]
        assert peak == pytest.approx(need["activations"], rel=0.05)
        sent = [event["bytes"] for event in record["comm"] if event["op"] == "send"]
        assert sent == [message] * (2 if rank == 1 else 1)
        highest = sum(at_peak(need).values())
        assert record["memory"]["peak_bytes"] == pytest.approx(highest, rel=0.05)
        assert highest == sum(need.values()) - need["gradients"]  # these and activations never meet


def test_a_device_with_too_little_memory_says_what_to_change(monkeypatch):
    monkeypatch.setattr(strings, "_chosen", "ko")
    needs = device_needs(DEEP, [33, 33, 34], micro_batch=4, block=32)
    most = max(sum(at_peak(need).values()) for need in needs)
    check_limits(needs, [most] * 3)
    with pytest.raises(ValueError) as said:  # in the language of the lesson, and in English
        check_limits(needs, [most, most, most - 1])
    over = said.value.args[0]
    assert re.search(r"device 2 has .* for activations: give it fewer layers", over.english)
    assert over.startswith("장치 2의 한도")
    assert "활성화값" in over and "시퀀스를 줄이거나" in over
    with expect_failure("give it fewer layers"):  # the lesson's cell is the same in both
        check_limits(needs, [most, most, most - 1])
    needs = device_needs(DEEP, [33, 33, 34], micro_batch=1, block=1)
    with pytest.raises(ValueError) as said:
        check_limits(needs, [1000] * 3)
    over = said.value.args[0]
    assert re.search(r"for optimizer state: .* offload its optimizer", over.english)


# --- Offload ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
@pytest.mark.parametrize("overlap", [False, True])
def test_offload_equals_one_process_and_moves_what_was_predicted(kind, overlap):
    losses, alone = one_process()
    model = GPT(SMALL)
    names = [name for name, _ in model.named_parameters()]
    total, blocks = 4 * size(model), 4 * size(model.blocks)
    offload = kind(model, LocalHost(), overlap=overlap)
    for step in range(STEPS):
        loss = model(*batch(step))
        loss.backward()
        offload.step()
        assert loss.item() == losses[step]
        assert all(p.grad is None for p in model.parameters())
    fetched = total if kind is OptimizerOffload else 2 * blocks + (total - blocks)
    assert (offload.out_bytes, offload.back_bytes) == (STEPS * total, STEPS * fetched)
    for unit in offload.units:  # a master's numbers, as the parameters would be
        master = offload.host.masters[unit.index].detach()
        want = [dict(alone.named_parameters())[name] for name in names_of(unit, model, names)]
        assert torch.equal(master, torch.cat([p.detach().flatten() for p in want]))


def names_of(unit, model, names):
    of = {id(p): name for name, p in zip(names, model.parameters(), strict=True)}
    return [of[id(p)] for p in unit.parameters]


def test_bfloat16_parameters_have_a_float32_master():
    model = GPT(SMALL).bfloat16()
    offload = OptimizerOffload(model, LocalHost(lr=1e-5))
    for step in range(2):
        model(*batch(step)).backward()
        offload.step()
    master, unit = offload.host.masters[1], offload.units[1]
    assert master.dtype == torch.float32 and unit.row.dtype == torch.bfloat16
    assert torch.equal(unit.row, master.bfloat16()) and not torch.equal(unit.row.float(), master)
    assert offload.out_bytes == 2 * 2 * size(model)


def test_float64_parameters_keep_their_digits():
    """Masters in float32 would be 2e-7 off after a step, silently."""
    ours, alone = GPT(SMALL).double(), GPT(SMALL).double()
    offload = OptimizerOffload(ours, LocalHost())
    optimizer = torch.optim.AdamW(alone.parameters())
    for step in range(2):
        optimizer.zero_grad()
        for model in (ours, alone):
            model(*batch(step)).backward()
        offload.step(), optimizer.step()
    pairs = zip(ours.parameters(), alone.parameters(), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) < 1e-12  # one rounding of sums


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_host_keeps_what_was_predicted(dtype):
    model = GPT(SMALL).to(dtype)
    offload = OptimizerOffload(model, LocalHost())
    model(*batch(0)).backward()
    offload.step()
    host = offload.host
    kept = [*host.masters, *host.buffers]
    for adam in host.adams:
        kept += [moment for state in adam.state.values() for moment in state.values()]
    counters = 4 * len(host.adams)
    want = offloaded_state_bytes(size(model), value_bytes=dtype.itemsize)
    assert sum(tensor.nbytes for tensor in kept) == want + counters


def test_the_hosts_learning_rate_can_be_changed():
    model, host = GPT(SMALL), LocalHost(lr=1e-3)
    offload = OptimizerOffload(model, host)
    steps = []
    for host.lr in (1e-3, 0.0):
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        model(*batch(0)).backward()
        offload.step()
        steps.append(torch.cat([p.detach().flatten() for p in model.parameters()]) - before)
    assert steps[0].abs().max() > 5e-4 and not steps[1].any()


def test_gradients_may_add_up_without_overlap_only():
    model, tokens = GPT(SMALL), batch(0)
    offload = OptimizerOffload(model, LocalHost(), overlap=False)
    (model(*tokens) / 2).backward()
    (model(*tokens) / 2).backward()
    offload.step()
    _, alone = one_process(steps=1)
    apart = max(
        (a - b).abs().max() for a, b in zip(model.parameters(), alone.parameters(), strict=True)
    )
    assert apart < 5e-5  # 5% of a step: sums of halves round differently
    model = GPT(SMALL)
    offload = OptimizerOffload(model, LocalHost())
    model(*tokens).backward()
    with pytest.raises(ValueError, match=r"second backward before step.*overlap=False"):
        model(*tokens).backward()


@pytest.mark.parametrize("offload_class", [OptimizerOffload, ParameterOffload])
def test_a_model_that_is_dropped_is_freed(offload_class):
    """Hooks of parameters are hidden from Python's collector: one that holds the model keeps it."""
    model = GPT(SMALL)
    offload = offload_class(model, LocalHost())
    model(*batch(0)).backward()
    offload.step()
    alive = [weakref.ref(thing) for thing in (model, offload, offload.units[1])]
    del model, offload
    gc.collect()
    assert [ref() for ref in alive] == [None] * 3


def test_parameters_without_gradients_are_refused():
    model = GPT(SMALL)
    model.blocks[1].mlp_norm.weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 parameters .* gradient, blocks\.1\.mlp_norm\.weight"):
        OptimizerOffload(model, LocalHost())
    offload = OptimizerOffload(GPT(SMALL), LocalHost())
    with pytest.raises(ValueError, match=r"parameters of unit 5 have no gradient: call backward"):
        offload.step()


def test_a_host_with_too_little_memory_says_what_to_change():
    model = GPT(SMALL)
    need = offloaded_state_bytes(size(model))
    OptimizerOffload(model, LocalHost(memory=need))
    with pytest.raises(ValueError, match=r"memory=.* needs .* there: leave the state on .*ZeRO"):
        OptimizerOffload(GPT(SMALL), LocalHost(memory=need - 1))


def test_the_limit_of_a_container_counts(monkeypatch):
    monkeypatch.setattr("dlcourse.machine.memory_bytes", lambda: 2**20)
    with pytest.raises(ValueError, match="the host has memory="):
        OptimizerOffload(GPT(SMALL), LocalHost())


def to_a_rank(kind, overlap, config=SMALL, steps=STEPS, memory=None):
    """Rank 0 computes, rank 2 is its host; rank 1 has nothing to do."""
    rank = dist.get_rank()
    before = live_bytes()  # what other tests have left in this rank
    with Recorder(rank, 3) as recorder:
        if rank == 2:
            serve(0, steps=steps, parameters=kind is ParameterOffload, memory=memory)
        if rank == 0:
            model = GPT(config)
            offload = kind(model, RankHost(2), overlap=overlap)
            losses = []
            for step in range(steps):
                loss = model(*batch(step))
                losses.append(loss.item())
                loss.backward()
                del loss
                offload.step()
    memory = recorder.record["memory"]
    found = {k: {c: memory[k][c] - before[c] for c in before} for k in ("end", "peaks")}
    if rank == 0:
        want, alone = one_process(config, steps)
        same = losses == want and (kind is ParameterOffload or equal(model, alone))
        sent = sum(event["bytes"] for event in recorder.record["comm"] if event["op"] == "send")
        found |= {"same": same, "moved": (offload.out_bytes, offload.back_bytes), "sent": sent}
        found |= {"total": 4 * size(model), "blocks": 4 * size(model.blocks)}
    return found


@pytest.mark.parametrize("overlap", [False, True])
def test_a_rank_as_host_keeps_the_state(three, overlap):
    device, _, host = three(to_a_rank, OptimizerOffload, overlap)
    total = device["total"]
    assert device["same"] and device["moved"] == (STEPS * total, STEPS * total)
    assert device["end"]["parameters"] == total
    assert device["end"]["gradients"] == device["end"]["optimizer_state"] == 0
    assert device["sent"] == pytest.approx((STEPS + 1) * total, rel=0.01)  # and once, to begin with
    activations = activation_peak(SMALL, micro_batch=4, block=32)
    assert device["peaks"]["activations"] == pytest.approx(activations, rel=0.05)
    if overlap:  # gradients leave while backward goes on
        assert device["peaks"]["gradients"] < 0.6 * total
    else:
        assert device["peaks"]["gradients"] == total
    units = 1 + SMALL.n_layer
    assert host["peaks"]["optimizer_state"] == 2 * total + 4 * units
    assert host["peaks"]["parameters"] == total


class Counted(ParameterOffload):
    """Notes the largest number of blocks that are on the device at once."""

    most = 0

    def start(self, unit):
        super().start(unit)
        self.most = max(self.most, sum(block.is_here for block in self.units[1:]))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_block_goes_before_the_next_but_one_comes(overlap):
    model = GPT(SMALL)
    offload = Counted(model, LocalHost(), overlap=overlap)
    for step in range(2):
        model(*batch(step)).backward()
        offload.step()
    assert offload.most == (2 if overlap else 1)


@pytest.mark.parametrize("overlap", [False, True])
def test_parameters_come_for_a_moment(three, overlap):
    device, _, _ = three(to_a_rank, ParameterOffload, overlap)
    total, blocks, end = device["total"], device["blocks"], device["end"]
    assert device["same"] and device["moved"] == (STEPS * total, STEPS * (total + blocks))
    activations = activation_peak(SMALL, micro_batch=4, block=32)
    assert device["peaks"]["activations"] == pytest.approx(activations, rel=0.05)
    # Embeddings, norm and head stay, and the NaN that is read where the others are
    assert end["parameters"] == total - blocks + 4
    assert end["gradients"] == end["optimizer_state"] == end["communication"] == 0


def test_a_rank_with_too_little_memory_is_refused_in_both(three):
    def both():
        try:
            to_a_rank(OptimizerOffload, True, memory=1000)
        except ValueError as error:
            return str(error)
        return ""

    device, _, host = three(both)
    assert device == host and "memory=1,000 B" in host and "ZeRO" in host


def interrupted(kind, overlap, where, cut):
    """A step, one that fails in ``where`` of block ``cut``, zero_grad, and another step."""
    model = GPT(SMALL)
    offload = kind(model, LocalHost(), overlap=overlap)
    model(*batch(0)).backward()
    offload.step()

    def fails(*_):
        raise ZeroDivisionError

    mlp = model.blocks[cut].mlp
    hook = {"forward": mlp.register_forward_hook, "backward": mlp.register_full_backward_hook}
    handle = hook[where](fails)
    with pytest.raises(ZeroDivisionError):
        model(*batch(2)).backward()
    handle.remove()
    return model, offload


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_forward_that_fails_leaves_nothing_behind(kind, overlap, cut):
    _, alone = one_process(steps=2)
    model, offload = interrupted(kind, overlap, "forward", cut)
    model(*batch(1)).backward()
    offload.step()
    with torch.no_grad():
        assert model(*batch(2)).item() == alone(*batch(2)).item()


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_backward_that_fails_is_forgotten(kind, overlap, cut):
    _, alone = one_process(steps=2)
    model, offload = interrupted(kind, overlap, "backward", cut)
    if kind is ParameterOffload or overlap:
        with pytest.raises((ValueError, RuntimeError), match=r"zero_grad\(\) of the offload"):
            model(*batch(1)).backward()
    offload.zero_grad()
    model(*batch(1)).backward()
    offload.step()
    with torch.no_grad():
        assert model(*batch(2)).item() == alone(*batch(2)).item()


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
@pytest.mark.parametrize("overlap", [False, True])
def test_a_whole_step_is_forgotten_and_then_there_is_none(kind, overlap):
    _, alone = one_process(steps=1)
    model = GPT(SMALL)
    offload = kind(model, LocalHost(), overlap=overlap)
    model(*batch(2)).backward()
    offload.zero_grad()
    with pytest.raises(ValueError, match=r"have no gradient: call backward\(\) before step"):
        offload.step()
    model(*batch(0)).backward()
    if kind is ParameterOffload:  # the host's buffers hold gradients now
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"call step\(\) before the next"):
            model(*batch(1))
    offload.step()
    with torch.no_grad():
        assert model(*batch(2)).item() == alone(*batch(2)).item()


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
def test_an_old_graph_is_refused_after_a_step(kind):
    """As autograd does it after an optimizer's step in place."""
    model = GPT(SMALL)
    offload = kind(model, LocalHost())
    old = model(*batch(0))
    model(*batch(1)).backward()
    offload.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        old.backward()


@pytest.mark.parametrize("change", ["load", "type"])
def test_weights_that_the_host_does_not_know_are_refused(change):
    model = GPT(SMALL)
    offload = OptimizerOffload(model, LocalHost())
    if change == "load":
        model.load_state_dict(GPT(SMALL, seed=1).state_dict())
    else:
        model.bfloat16()
    before = [p.detach().clone() for p in model.parameters()]
    model(*batch(0)).backward()
    with pytest.raises(ValueError, match=r"changed or moved after the offload had copied it"):
        offload.step()
    assert all(map(torch.equal, before, model.parameters()))


def test_one_unused_parameter_stops_the_step_before_anything_moves():
    model = GPT(SMALL)
    model.blocks[0].extra = nn.Parameter(torch.ones(3))
    offload = OptimizerOffload(model, LocalHost(), overlap=False)
    before = [p.detach().clone() for p in model.parameters()]
    model(*batch(0)).backward()
    with pytest.raises(ValueError, match=r"1 of 14 parameters of unit 1 have no gradient"):
        offload.step()
    assert all(map(torch.equal, before, model.parameters()))
    assert offload.out_bytes == 0


def test_what_offload_refuses():
    shared, mixed, twice = (GPT(SMALL) for _ in range(3))
    shared.blocks[2] = shared.blocks[1]
    with pytest.raises(ValueError, match=r"unit 3 has .* 13 of them in another unit as well"):
        OptimizerOffload(shared, LocalHost())
    mixed.blocks[1].mlp.bfloat16()
    with pytest.raises(ValueError, match=r"unit 2 has torch.bfloat16 on cpu, torch.float32 on cpu"):
        OptimizerOffload(mixed, LocalHost())
    OptimizerOffload(twice, LocalHost())
    with pytest.raises(ValueError, match=r"model is in an offload already"):
        ParameterOffload(twice, LocalHost())


def test_parameters_that_are_away_are_not_saved_as_nothing():
    model = GPT(SMALL)
    offload = ParameterOffload(model, LocalHost())
    model(*batch(0)).backward()
    offload.step()
    assert model.blocks[0].mlp.up.weight.isnan().all()
    with pytest.raises(ValueError, match=r"inside `with offload.gathered\(\):`"):
        model.state_dict()
    with offload.gathered():
        copy = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _, alone = one_process(steps=1)
    assert all(torch.equal(copy[name], p) for name, p in alone.named_parameters())
    for call in (lambda: deepcopy(model), lambda: model.load_state_dict(copy)):
        with offload.gathered(), pytest.raises(ValueError, match="before you build the offload"):
            call()
    model(*batch(1)).backward()
    offload.step()
    _, alone = one_process(steps=2)
    with torch.no_grad():
        assert model(*batch(2)).item() == alone(*batch(2)).item()


def test_a_copy_of_an_offloaded_model_is_a_plain_one():
    model = GPT(SMALL)
    offload = OptimizerOffload(model, LocalHost())
    model(*batch(0)).backward()
    offload.step()
    copy = deepcopy(model)
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.1)
    copy(*batch(1)).backward()
    assert all(p.grad is not None for p in copy.parameters())
    optimizer.step()
    _, alone = one_process(steps=1)
    assert equal(model, alone) and not equal(copy, alone)


def against_the_host_rank(kind, parameters, how):
    """What rank 0 says that does not do what its host rank waits for."""
    rank = dist.get_rank()
    try:
        if rank == 2:
            serve(0, steps=1, parameters=parameters)
        if rank == 0:
            model = GPT(SMALL)
            offload = kind(model, RankHost(2))
            how(model, offload)
    except (ValueError, RuntimeError) as error:
        return str(error)


def finish(model, offload):
    """So that the host rank is served as well."""
    model(*batch(0)).backward()
    offload.step()


def backwards_twice(model, offload):
    model(*batch(0)).backward()
    try:
        offload.zero_grad()
    finally:
        offload.step()


def test_a_host_rank_serves_whole_steps(three):
    for parameters in (False, True):
        kind = OptimizerOffload if parameters else ParameterOffload
        device, _, host = three(against_the_host_rank, kind, parameters, finish)
        assert device == host and f"give serve(parameters={not parameters})" in host
    device, _, _ = three(against_the_host_rank, OptimizerOffload, False, backwards_twice)
    assert "rank 2 is in the middle of a step" in device


def evaluates(model, offload):
    with torch.no_grad():
        model(*batch(0))
    model(*batch(0)).backward()


def test_a_host_rank_does_not_know_of_an_evaluation():
    with Ranks(3, default=False) as pool:  # of its own: the host rank is left waiting

        def job():
            if dist.get_rank() == 2:
                serve(0, steps=1, parameters=True)
            if dist.get_rank() == 0:
                model = GPT(SMALL)
                offload = ParameterOffload(model, RankHost(2))
                evaluates(model, offload)

        with pytest.raises(
            RankError, match=r"pull of unit 1, and rank 2 is at .*whole steps alone"
        ):
            pool.run(job)


# --- Loading ------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    model = GPT(SMALL)
    names = list(model.state_dict())
    groups = [[n for n in names if n.startswith(f"blocks.{i}.")] for i in range(SMALL.n_layer)]
    groups.append([n for n in names if not n.startswith("blocks.")])
    save_shards(model, tmp_path, groups)
    return tmp_path


def live():
    gc.collect()
    with Recorder(0, 1) as recorder:
        pass
    return recorder.record["memory"]["end"]


def test_a_meta_module_gets_its_own_tensors_alone(shards):
    with torch.device("meta"):
        stage = Stage(GPT(SMALL), range(2, 4))
    assert all(p.is_meta for p in stage.parameters())
    before = live()
    with Recorder(0, 1) as recorder:
        read = load_module(stage, shards)
    assert equal(stage, GPT(SMALL))
    assert all(p.requires_grad for p in stage.parameters())
    assert read == 4 * size(stage)
    memory = recorder.record["memory"]
    assert memory["end"]["parameters"] - before["parameters"] == read
    assert memory["peak_bytes"] - sum(before.values()) == read


def test_tied_parameters_are_read_once_and_stay_tied(tmp_path):
    config = replace(SMALL, tie_embeddings=True)
    torch.manual_seed(1)
    model = GPT(config)
    save_shards(model, tmp_path, [list(model.state_dict())])
    with torch.device("meta"):
        loaded = GPT(config)
    assert load_module(loaded, tmp_path) == 4 * size(model) == 4 * size(loaded)
    assert len(list(loaded.parameters())) == len(list(model.parameters()))
    states = zip(loaded.state_dict().items(), model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in states)


def test_one_number_of_any_stride_is_saved(tmp_path):
    tensor = torch.randn(1, 2)[:, 0]
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    assert torch.equal(safetensors.torch.load_file(tmp_path / "a.safetensors")["a"], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_torch_reads_the_same_header(tmp_path):
    from torch.distributed.checkpoint._hf_utils import _get_safetensors_file_metadata

    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(7),
        "c": torch.ones(3).bfloat16(),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with (tmp_path / "x.safetensors").open("rb") as file:
        header, length = _get_safetensors_file_metadata(file)
    file = File(tmp_path / "x.safetensors")
    assert header == file.header and length == file.start and length % 8 == 0
    assert header["c"] == {"dtype": "BF16", "shape": [3], "data_offsets": [32, 38]}
    for name, tensor in tensors.items():
        assert torch.equal(file.read(name), tensor)


def test_the_package_reads_the_same_tensors(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}
    save_file(tensors, tmp_path / "x.safetensors")
    for name, tensor in safetensors.torch.load_file(tmp_path / "x.safetensors").items():
        assert torch.equal(tensor, tensors[name])


def test_what_cannot_be_loaded_is_refused(shards):
    with torch.device("meta"):
        other = GPT(GPTConfig(n_layer=6, n_head=2, n_embd=32, block_size=32))
        wide = GPT(GPTConfig(n_layer=5, n_head=2, n_embd=64, block_size=32))
    with pytest.raises(ValueError, match=r"blocks.5.* is in no file"):
        load_module(other, shards)
    with pytest.raises(ValueError, match=r"has shape \(256, 32\) in .* and \(256, 64\)"):
        load_module(wide, shards)
    assert all(p.is_meta for p in wide.parameters())
    name = json.loads((shards / INDEX).read_text())["weight_map"]["norm.weight"]
    (shards / name).write_bytes((shards / name).read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"not a whole safetensors file"):
        File(shards / name)
    with pytest.raises(ValueError, match=r"each name of model.state_dict"):
        save_shards(GPT(SMALL), shards, [["norm.weight"]])


TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.bool),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_every_type_of_the_format(tmp_path, dtype):
    """In both directions; float8 has no equality, so bytes are compared."""
    numbers = torch.arange(6).to(dtype)
    tensors = {"row": numbers, "matrix": numbers.view(2, 3).t(), "empty": numbers[:0].view(3, 0)}
    tensors |= {"number": numbers[5], "part": numbers[2:4], "other": torch.ones(1)}
    if dtype.is_complex:
        tensors |= {"conjugate": (numbers * 1j).conj()}
    save_file(tensors, tmp_path / "ours")
    dense = {name: tensor.resolve_conj().contiguous().clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(dense, tmp_path / "theirs")
    of_ours, theirs = safetensors.torch.load_file(tmp_path / "ours"), File(tmp_path / "theirs")
    for name, tensor in dense.items():
        for found in (of_ours[name], theirs.read(name)):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            as_bytes = [x.flatten().view(torch.uint8) for x in (found, tensor)]
            assert torch.equal(*as_bytes)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (
            torch.ones(2, dtype=torch.complex128),
            "torch.complex128: the format knows torch.float64, ",
        ),
        (torch.ones(2, device="meta"), "on meta, .* give it numbers"),
        (torch.eye(2).to_sparse(), "on cpu, torch.sparse_coo: give it numbers, and make it dense"),
        ([1.0], "a list: give tensors"),
    ],
)
def test_what_cannot_be_saved(tmp_path, tensor, said):
    save_file({"x": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(ValueError, match=f"y cannot be saved, as it is {said}"):
        save_file({"x": torch.zeros(2), "y": tensor}, tmp_path / "x")
    assert torch.equal(File(tmp_path / "x").read("x"), torch.ones(2))
    with pytest.raises(ValueError, match="__metadata__ cannot be saved, as it has a name that"):
        save_file({"__metadata__": torch.ones(2)}, tmp_path / "x")


def test_a_file_may_be_saved_again_while_it_is_mapped(tmp_path):
    save_file({"x": torch.ones(10_000)}, tmp_path / "x")
    file = File(tmp_path / "x")
    save_file({"x": torch.zeros(1)}, tmp_path / "x")
    assert torch.equal(file.read("x"), torch.ones(10_000))
    assert [f.name for f in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kept", ["head.weight", "token_embedding.weight"])
def test_tied_parameters_that_were_saved_once(tmp_path, kept):
    config = replace(SMALL, tie_embeddings=True)
    model = GPT(config)
    state = model.state_dict()
    del state[{"head.weight", "token_embedding.weight"}.difference([kept]).pop()]
    save_file(state, tmp_path / "file")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, "file")}))
    with torch.device("meta"):
        loaded = GPT(config)
    assert load_module(loaded, tmp_path) == 4 * size(model)
    assert loaded.head.weight is loaded.token_embedding.weight
    assert equal(loaded, model)


def test_tied_parameters_that_were_saved_untied(shards):
    with torch.device("meta"):
        tied = GPT(replace(SMALL, tie_embeddings=True))
    with pytest.raises(ValueError, match=r"are one tensor in the module, and have different num"):
        load_module(tied, shards)
    assert all(p.is_meta for p in tied.parameters())


class Scaled(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.layer = nn.Linear(3, 3, dtype=dtype)
        self.register_buffer("scale", torch.arange(3.0) + 1, persistent=False)
        self.register_buffer("count", torch.tensor(7))


def test_a_buffer_that_no_file_holds(tmp_path):
    model = Scaled()
    save_shards(model, tmp_path, [list(model.state_dict())])
    with torch.device("meta"):
        loaded = Scaled()
    with pytest.raises(ValueError, match=r"scale: registered with persistent=False.* assign"):
        load_module(loaded, tmp_path)
    assert loaded.layer.weight.is_meta
    loaded.scale = torch.arange(3.0) + 1
    load_module(loaded, tmp_path)
    assert equal(loaded, model) and loaded.count == 7


def test_the_module_keeps_its_types(tmp_path):
    model = Scaled(torch.bfloat16)
    state = dict(model.state_dict())
    save_file(state, tmp_path / "file")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(state, "file")}))
    with torch.device("meta"):
        loaded = Scaled()
    loaded.scale = model.scale
    assert load_module(loaded, tmp_path) == 2 * 12 + 8
    assert loaded.layer.weight.dtype == torch.float32
    assert torch.equal(loaded.layer.weight, model.layer.weight.float())
    state["layer.weight"] = state["layer.weight"].to(torch.int8)
    save_file(state, tmp_path / "file")
    with pytest.raises(ValueError, match=r"layer.weight has dtype I8 in file and torch.float32"):
        load_module(loaded, tmp_path)


def test_damaged_files_are_refused_in_words(tmp_path, shards):
    for content in (b"", b"\0" * 4, b"\2\0\0\0\0\0\0\0[]", b"\3\0\0\0\0\0\0\0{x}", b"\xff" * 9):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(ValueError, match=r"x has .*(header|not a whole safetensors file)"):
            File(tmp_path / "x")
    save_file({"a": torch.ones(2)}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole.replace(b'"F32"', b'"F4" '))
    with pytest.raises(ValueError, match=r"a in x has dtype F4, and known are F64, "):
        File(tmp_path / "x").read("a")
    with pytest.raises(ValueError, match=r"b is not in x, which has a"):
        File(tmp_path / "x").read("b")
    (tmp_path / "x").write_bytes(whole.replace(b"[0, 8]", b"[8, 0]"))
    with pytest.raises(ValueError, match=r"x has a header that cannot be read"):
        File(tmp_path / "x")
    model, index = GPT(SMALL), shards / INDEX
    text = index.read_text()
    index.write_text(text.replace("model-00001-of", "model-9-of"))
    with pytest.raises(ValueError, match=r"model-9-of-00006.safetensors of .* is not in folder"):
        load_module(model, shards)
    index.write_text(text[:-9])
    with pytest.raises(ValueError, match=r"index.json in folder=.* cannot be read"):
        load_module(model, shards)
    index.unlink()
    with pytest.raises(ValueError, match=r"has no model.safetensors.index.json, which is written"):
        load_module(model, shards)


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("block", [0, 1, 3])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
def test_a_step_that_was_cut_off_leaves_nothing(kind, overlap, block, where):
    """After an exception in a block the next step is that of one process."""

    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ZeroDivisionError

    def cut(module, args, y):
        if where == "forward":
            raise ZeroDivisionError
        return Cut.apply(y)

    config = GPTConfig(block_size=16, n_layer=4, n_head=2, n_embd=32)
    tokens = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(0))
    alone, model = GPT(config), GPT(config)
    optimizer = torch.optim.AdamW(alone.parameters(), lr=1e-3)
    offload = kind(model, LocalHost(lr=1e-3), overlap=overlap)
    for step in range(3):
        optimizer.zero_grad()
        alone(tokens, tokens).backward()
        optimizer.step()
        if step == 1:
            hook = model.blocks[block].mlp.register_forward_hook(cut)
            with pytest.raises(ZeroDivisionError):
                model(tokens, tokens).backward()
            hook.remove()
            offload.zero_grad()
        model(tokens, tokens).backward()
        offload.step()
    with torch.no_grad():  # float32, Adam's steps on equal gradients: the same to rounding
        assert abs(model(tokens, tokens) - alone(tokens, tokens)) < 1e-5


def test_a_tied_matrix_at_both_ends_is_refused():
    """Each device would train its own; on one device it stays one."""
    config = replace(SMALL, tie_embeddings=True)
    with pytest.raises(ValueError, match="would be on two devices"):
        LayersOverDevices(GPT(config), [1, config.n_layer - 1], ["cpu", "cpu"])
    shared = GPT(SMALL)
    shared.blocks[1] = shared.blocks[0]
    with pytest.raises(ValueError, match="is used in stages 0 and 1 too"):
        LayersOverDevices(shared, [1, config.n_layer - 1], ["cpu", "cpu"])
    alone, one = GPT(config), LayersOverDevices(GPT(config), [config.n_layer], ["cpu"])
    tokens = torch.arange(16).view(2, 8)
    for model in (alone, one):
        model(tokens, tokens).backward()
    (stage,) = one.stages
    assert stage.head.weight is stage.token_embedding.weight
    assert torch.equal(stage.head.weight.grad, alone.head.weight.grad)
