"""Experts divided over real ranks must be the MoE of one process, on all ranks' tokens.

Tolerance. Sums over ranks round otherwise than one sum does. In float64 that moves the last digits:
1e-10 is asked for, of gradients up to 0.1 and of parameters after five steps of AdamW.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
import sys
import time
from collections import Counter
from contextlib import nullcontext
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from dlcourse import RankError, Ranks
from dlcourse.collectives import direct, one_sided
from dlcourse.collectives.low_latency_exchange import LowLatencyExchange
from dlcourse.collectives.places import ready_ways
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.corpus import Corpus
from dlcourse.formulas.traffic import distinct_ranks, expert_trip_bytes
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.moe import MoE, balance_loss, z_loss
from dlcourse.models.targets import weighted
from dlcourse.parallel import tensor
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.data import BucketedDataParallel
from dlcourse.parallel.expert import ExpertParallel, expert_parallel
from dlcourse.parallel.expert_groups import (
    ExpertDataParallel,
    force_balance,
    imbalance,
    make_expert_mesh,
)
from dlcourse.parallel.expert_state import whole_state_dict
from dlcourse.parallel.expert_trip import torch_exchange
from dlcourse.parallel.mesh import MeshParallel, make_mesh
from dlcourse.parallel.replicas import replica_drift
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.peers import expert_parallel as expert_peers
from dlcourse.training import accumulation, by_hand, loop
from dlcourse.training.checkpointing.checkpoint import checkpoint as course_checkpoint
from dlcourse.training.mixed_precision import training_step

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

needs_memory = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd_create of Linux")
TOLERANCE = 1e-10
LR = 1e-3
C = 32


@pytest.fixture(scope="module")
def run():
    with Ranks(4, default=False) as pool:
        pool.run(
            partial(refused, "nothing")
        )  # a rank still importing might be cut off by a refusal
        yield pool.run


def drawn(moe, seed):
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*moe.experts.parameters(), *moe.router.parameters()]:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return moe


def moe_gpt(seed, *, dtype=torch.float64, tie=False, shared=True, **options):
    """A GPT whose MLPs are MoE layers, with the old MLP as the shared expert."""
    torch.set_default_dtype(dtype)
    try:
        gpt = GPT(
            GPTConfig(block_size=16, n_layer=2, n_head=4, n_embd=C, tie_embeddings=tie), seed=seed
        )
        for number, block in enumerate(gpt.blocks):
            options = dict(num_experts=8, top_k=2, hidden=C) | options
            moe = MoE(C, shared=block.mlp if shared else None, **options)
            block.mlp = drawn(moe, 10 * seed + number)
    finally:
        torch.set_default_dtype(torch.float32)
    return gpt


def change(gpt, case):
    """What a case does to the model before it is wrapped."""
    first, second = (block.mlp for block in gpt.blocks)
    if case == "tied experts":
        second.experts.up = first.experts.up
    if case == "tied layers":
        gpt.blocks[1].mlp = first
    if case == "empty experts":  # two of eight get all tokens: two ranks of four compute nothing
        for moe in (first, second):
            moe.router.bias_E[:2] += 100
    frozen = {
        "frozen experts": ".experts.",
        "frozen router": "router",
        "frozen embeddings": "embedding",
        "frozen shared": "shared",
    }.get(case)
    for name, parameter in gpt.named_parameters():
        parameter.requires_grad_(frozen is None or frozen not in name)
    return gpt


def parts_of(batch, case, size):
    """Each rank's part of a batch, of one process's in the same order."""
    if case == "uneven":
        return batch.split([1, 2, 4, 1])
    if case == "no tokens":
        return batch.split([0, 3, 5, 0])
    return batch.chunk(size)


def losses_of(gpt, x, y, case, share):
    loss = weighted(gpt(x, y), share)
    if case == "balance loss":
        for block in gpt.blocks:
            moe = block.mlp
            asked_E = getattr(moe, "asked_E", moe.routing.counts())  # of all ranks
            extra = balance_loss(moe.routing, asked_E) + 0.1 * z_loss(moe.routing)
            loss = loss + 0.1 * extra * share
    return loss


TWO = ("accumulate", "synced each time")  # micro-batches a step


def beside_one_process(data, expert, case="", exchange=None, steps=5, **options):
    """The largest difference of losses, gradients and parameters over some steps."""
    options |= dict(tie=case == "tied embeddings", shared=case != "no shared")
    rank, size = dist.get_rank(), dist.get_world_size()
    mesh = make_expert_mesh(data=data, expert=expert)
    alone = change(moe_gpt(0, **options), case)
    given = change(moe_gpt(rank, **options), case)  # ranks are seeded differently
    kept = {} if exchange is None else {"exchange": exchange}
    ours = ExpertDataParallel(given, mesh, **kept)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=LR) for m in (alone, ours)]
    random, accumulate = torch.Generator().manual_seed(1), 2 if case in TWO else 1
    losses = gradients = 0.0
    for _ in range(steps):
        text = torch.randint(256, (8 * accumulate, 17), generator=random)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=case != "synced each time")
        for number, batch in enumerate(text.chunk(accumulate), start=1):
            mine = parts_of(batch, case, size)[rank]
            share = torch.tensor(len(mine) / len(batch) / accumulate)
            x, y = batch[:, :-1], batch[:, 1:]
            wanted = losses_of(alone, x, y, case, torch.tensor(1 / accumulate))
            wanted.backward()
            with nullcontext() if number == accumulate else ours.no_sync():
                loss = losses_of(ours.module, mine[:, :-1], mine[:, 1:], case, share * size)
                loss.backward()
            total = loss.detach() / size
            dist.all_reduce(total)
            losses = max(losses, (total - wanted).abs().item())
            if case == "synced each time":
                ours.sync_gradients()
        ours.sync_gradients()
        pairs = zip(alone.named_parameters(), ours.module.named_parameters(), strict=True)
        for (name, whole), (_, part) in pairs:
            if not whole.requires_grad:
                assert part.grad is None and not part.requires_grad, name
                continue
            grad = whole.grad
            if ".experts." in name:
                grad = grad.chunk(expert)[mesh.get_local_rank("expert")]
            gradients = max(gradients, (grad - part.grad).abs().max().item())
        for optimizer in optimizers:
            optimizer.step()
    state = whole_state_dict(ours.module)
    parameters = max((p - state[n]).abs().max().item() for n, p in alone.named_parameters())
    for block, own in zip(alone.blocks, ours.module.blocks, strict=True):
        assert block.mlp.counts_E.equal(own.mlp.counts_E)
        assert block.mlp.num_dropped == own.mlp.num_dropped
    return losses, gradients, parameters, alone.blocks[0].mlp.num_dropped


def assert_equal(results):
    for *found, _ in results:
        assert max(found) <= TOLERANCE, results


@pytest.mark.parametrize("layout", [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("options", [{}, {"capacity_factor": 0.75}], ids=["dropless", "capacity"])
def test_equals_one_process(run, layout, options):
    results = run(beside_one_process, *layout, **options)
    assert_equal(results)
    assert all(bool(dropped) == bool(options) for *_, dropped in results)


CASES = {
    "top 1": {"top_k": 1},
    "top 3": {"top_k": 3},
    "no shared": {},
    "frozen experts": {},
    "frozen router": {},
    "frozen embeddings": {},
    "frozen shared": {},
    "tied embeddings": {},
    "tied experts": {},
    "tied layers": {},
    "empty experts": {},
    "accumulate": {},
    "synced each time": {},
    "uneven": {"capacity_factor": 1.0},
    "no tokens": {},
    "balance loss": {"capacity_factor": 1.0},
}


@pytest.mark.parametrize("case", CASES)
def test_equals_one_process_also_with(run, case):
    assert_equal(run(beside_one_process, 2, 2, case, steps=2, **CASES[case]))


@pytest.mark.parametrize("case", ["empty experts", "no tokens"])
def test_a_rank_of_four_with_nothing_to_compute(run, case):
    assert_equal(run(beside_one_process, 1, 4, case, steps=2))


@pytest.mark.parametrize("exchange", [direct.all_to_all, one_sided.all_to_all], ids=["p2p", "put"])
@pytest.mark.parametrize("layout", [(1, 4), (2, 2)])
def test_any_exchange_with_the_interface_of_all_to_all(run, layout, exchange):
    assert_equal(run(beside_one_process, *layout, exchange=exchange, steps=2))


@needs_memory
@pytest.mark.parametrize("ready", ready_ways())
@pytest.mark.parametrize("layout", [(1, 4), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"capacity_factor": 0.75}], ids=["dropless", "capacity"])
def test_low_latency_as_the_layers_exchange(run, layout, ready, options):
    """Room for all tokens of a rank: 2 sequences of 16, twice."""
    exchange = LowLatencyExchange(2 * 2 * 16, ready=ready)
    assert_equal(run(beside_one_process, *layout, exchange=exchange, **options))


@needs_memory
@pytest.mark.parametrize("case", ["empty experts", "no tokens", "accumulate", "uneven"])
def test_low_latency_also_with(run, case):
    exchange = LowLatencyExchange(256)
    assert_equal(run(beside_one_process, 1, 4, case, exchange=exchange, steps=2, **CASES[case]))


def by_each_exchange():
    """Of each way to carry rows: output, all gradients, records, and what went over TCP."""
    rank, found = dist.get_rank(), {}
    ways = {"torch": torch_exchange, "put": one_sided.all_to_all}
    ways |= {ready: LowLatencyExchange(64, ready=ready) for ready in ready_ways()}
    ways["copied"] = copy.deepcopy(ways["flag"])
    for name, exchange in ways.items():
        moe = drawn(MoE(C, num_experts=8, top_k=2, hidden=C), 1)
        layer = expert_parallel(moe, exchange=exchange)
        x = torch.randn(32, C, generator=torch.Generator().manual_seed(rank), requires_grad=True)
        layer(x).square().sum().backward()  # makes the memory
        parameters = [*layer.parameters()]
        for kept in (x, *parameters):
            kept.grad = None
        dist.barrier()
        before = wire_counters()
        with Recorder(rank, 4, ledger=False) as recorder:
            y = layer(x)
            y.square().sum().backward()
        after = wire_counters()
        dist.barrier()
        ops = Counter(call["op"] for call in recorder.record["comm"])
        sent = after[0] - before[0] if before else None
        found[name] = [y, x.grad, *(p.grad for p in parameters)], dict(ops), sent
    assert "_buffers" in vars(ways["copied"])
    assert ways["copied"]._buffers is not ways["flag"]._buffers
    return found


@needs_memory
def test_every_exchange_gives_the_same_bits_and_low_latency_sends_nothing_over_gloo(run):
    for found in run(by_each_exchange):
        wanted, ops, sent = found["torch"]
        assert ops == {"all_gather": 1, "all_to_all": 4} and (sent is None or sent > 4000)
        for name, (tensors, theirs, their_bytes) in found.items():
            assert all((a == b).all() for a, b in zip(tensors, wanted, strict=True)), name
            assert theirs == ops, name
            if name not in ("torch", "put"):  # no counts either
                assert not their_bytes, name


def low_latency_trip(case):
    """One exchange, or gather, that cannot be, in one rank or in all."""
    rank, rows = dist.get_rank(), [2, 2, 2, 2]
    exchange = LowLatencyExchange(3 + (rank == 1 and case == "capacities differ"))
    x, y = torch.ones(8, 2), torch.empty(8, 2)
    counts, all_counts = torch.tensor([rank]), torch.empty(4, dtype=torch.int64)
    sent, came = list(rows), list(rows)
    if case == "over" and rank == 2:
        sent = [1, 4, 2, 1]
    elif case == "unlike" and rank == 2:
        sent = [3, 1, 2, 2]
    elif case == "rows":
        y = torch.empty(16, 1)
        came = [4, 4, 4, 4]
    elif case == "types":
        y = y.int()
    elif case == "gather":
        exchange.gather(all_counts[:3], counts)
    elif case == "gathered types":
        exchange.gather(all_counts.int(), counts)
    elif case == "gathered gaps":
        exchange.gather(torch.empty(8, dtype=torch.int64)[::2], counts)
    try:
        exchange(y, x, came, sent)
    except (ValueError, RuntimeError) as error:
        if case != "over":
            raise
        said = type(error).__name__, str(error)
        exchange(y, torch.full((8, 2), float(rank)), rows, rows)  # the next one is well again
        return *said, y[:, 0].tolist()


@needs_memory
def test_rows_over_the_capacity_are_refused_in_words_and_none_is_dropped(run):
    found = run(low_latency_trip, "over")
    for rank, (kind, text, after) in enumerate(found):
        assert after == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
        if rank == 2:
            assert kind == "ValueError" and "4 rows go to one rank" in text
            assert "capacity=3: none is dropped. Make LowLatencyExchange with capacity=4" in text
        else:
            assert kind == "RuntimeError" and "left a call" in text


@needs_memory
@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("unlike", r"ValueError: output_split_sizes is \[2, 2, 2, 2\], and the ranks "
        r"send \[2, 2, 3, 2\] rows"),
        ("rows", r"a row of output has shape \(1,\), one of input \(2,\)"),
        ("types", "output is torch.int32 and input torch.float32"),
        ("capacities differ", "capacity, width, dtype or ready differs between ranks"),
        ("gather", "output has 3 elements: 4 ranks with 1 each make 4"),
        ("gathered types", "output is torch.int32 and input torch.int64"),
        ("gathered gaps", "output or input is not contiguous"),
    ],
)  # fmt: skip
def test_what_low_latency_cannot_exchange(run, case, text):
    with pytest.raises(RankError, match=text):
        run(low_latency_trip, case)
    assert run(dist.get_rank) == [0, 1, 2, 3]


def with_a_slow_reader(ready, slow):
    """Calls of which a wrong number came to this rank: one is late to read, the others go on."""
    rank, found, exchange = dist.get_rank(), [], LowLatencyExchange(3, ready=ready)
    for call in range(40):
        x, y = torch.full((8, 2), float(4 * call + rank)), torch.empty(8, 2)
        exchange(y, x)
        if y[::2, 0].tolist() != [4.0 * call + r for r in range(4)]:
            found.append(call)
        (buffer,) = exchange._buffers.values()
        if call == 0 and rank == slow:
            fence = buffer.places.fence
            buffer.places.fence = lambda fence=fence: (fence(), time.sleep(0.002))
    return found


@needs_memory
@pytest.mark.parametrize("ready", ready_ways())
def test_two_places_in_turn_are_enough_for_a_late_reader(run, ready):
    assert run(with_a_slow_reader, ready, 1) == [[]] * 4


def too_small_for_a_layer():
    """Every token goes to the first two experts, which are rank 0's."""
    moe = drawn(MoE(C, num_experts=8, top_k=2, hidden=C), 1)
    moe.router.bias_E[:2] += 100
    expert_parallel(moe, exchange=LowLatencyExchange(63))(torch.ones(32, C))


@needs_memory
def test_a_layer_whose_tokens_do_not_fit_says_so(run):
    text = r"ValueError: 64 rows go to one rank .* and capacity=63: none is dropped"
    with pytest.raises(RankError, match=text):
        run(too_small_for_a_layer)


def in_bf16():
    """Relative errors of output and gradients, ours and one process's, against float64."""
    rank, random = dist.get_rank(), torch.Generator().manual_seed(1)
    text = torch.randint(256, (8, 17), generator=random)
    mine = text.chunk(dist.get_world_size())[rank]
    exact, alone = moe_gpt(0), moe_gpt(0, dtype=torch.float32)
    alone.load_state_dict(exact.state_dict())
    wrapped = copy.deepcopy(alone)
    sent = []

    def exchange(output, input, *splits, group):
        sent.append(input.dtype)
        dist.all_to_all_single(output, input, *splits, group=group)

    ours = ExpertDataParallel(wrapped, make_expert_mesh(expert=4), exchange=exchange)
    exact(text[:, :-1], text[:, 1:]).backward()
    with torch.autocast("cpu", torch.bfloat16):
        alone(text[:, :-1], text[:, 1:]).backward()
        ours(mine[:, :-1], mine[:, 1:]).backward()
    ours.sync_gradients()
    assert {*sent} == {torch.bfloat16} and len(sent) == 2 * 2 * 2
    off = []
    for name in ("blocks.0.mlp.experts.up", "blocks.0.attention.q.weight"):
        whole, one, part = (m.get_parameter(name).grad for m in (exact, alone, ours.module))
        if ".experts." in name:
            whole, one = (x.chunk(4)[rank] for x in (whole, one))
        off.append([((x - whole).norm() / whole.norm()).item() for x in (part, one)])
    return off


def float64_under_autocast():
    torch.manual_seed(0)
    alone, x = MoE(8, num_experts=4).double(), torch.ones(4, 8, dtype=torch.float64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return (expert_parallel(copy.deepcopy(alone))(x) - alone(x)).abs().max().item()


def test_float64_stays_under_autocast(run):
    assert max(run(float64_under_autocast)) < TOLERANCE


def test_bf16_autocast_rounds_as_in_one_process(run):
    # Both have bf16's error, some 1e-2; a quarter more leaves room for sums in another order
    for off in run(in_bf16):
        for ours, alone in off:
            assert 1e-4 < ours < 1.25 * alone < 0.1, off


def world_of_one():
    group = None
    for rank in range(dist.get_world_size()):
        one = dist.new_group([rank])
        group = one if rank == dist.get_rank() else group
    alone, given = (
        drawn(MoE(C, num_experts=3, top_k=2), 1),
        drawn(MoE(C, num_experts=3, top_k=2), 1),
    )
    ours = expert_parallel(given, group)
    twice = copy.deepcopy(alone)
    again = expert_parallel(nn.Sequential(twice, twice), group)
    assert isinstance(again[0], ExpertParallel) and again[0] is again[1]
    x = torch.randn(5, 7, C)
    wanted, y = alone(x), ours(x)
    wanted.square().mean().backward()
    y.square().mean().backward()
    same = [
        a.grad.equal(b.grad) for a, b in zip(alone.parameters(), ours.parameters(), strict=True)
    ]
    return isinstance(ours, ExpertParallel) and wanted.equal(y) and all(same)


def test_a_world_of_one_is_the_layer_itself(run):
    assert all(run(world_of_one))


def calls():
    """Forward's and backward's collectives of one layer, and what of it goes to other ranks."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    layer = expert_parallel(drawn(MoE(C, num_experts=8, top_k=2), 1))
    handles = force_balance(layer)
    x = torch.randn(16, C, generator=torch.Generator().manual_seed(rank)).requires_grad_()
    with Recorder(rank, world_size) as forward:
        y = layer(x)
    with Recorder(rank, world_size) as backward:
        y.square().mean().backward()
    balanced = imbalance(layer.rows_p)
    for handle in handles:
        handle.remove()
    layer(x)
    found = [
        [(event["op"], event.get("sent_bytes")) for event in recorder.record["comm"]]
        for recorder in (forward, backward)
    ]
    return found, balanced, imbalance(layer.rows_p)


def test_two_all_to_all_in_forward_and_two_in_backward(run):
    nbytes = expert_trip_bytes(16, width=C, top_k=2, world_size=4)
    trip = ("all_to_all", nbytes)
    assert nbytes == 16 * 2 * C * 4 * 3 / 4  # of 4 ranks, 3 are others
    for (forward, backward), balanced, routed in run(calls):
        assert forward == [("all_gather", None), trip, trip]
        assert backward == [trip, trip]
        assert balanced == 1.0 < routed


def order_of_events():
    """What a layer with a shared expert does, one after the other."""
    log = []

    class Arrival:
        def __init__(self, work):
            self.work = work

        def wait(self):
            self.work.wait()
            log.append("arrived")

    def exchange(*args, group):
        log.append("leaves")
        return Arrival(dist.all_to_all_single(*args, group=group, async_op=True))

    class Seen(nn.Linear):
        def __init__(self, name, *sizes):
            super().__init__(*sizes)
            self.register_forward_hook(lambda *_: log.append(name))
            self.register_full_backward_hook(lambda *_: log.append(name))

    moe = drawn(MoE(C, num_experts=4, top_k=1, shared=Seen("shared", C, C)), 1)
    moe.experts.register_forward_hook(lambda *_: log.append("experts"))
    moe.experts.register_full_backward_hook(lambda *_: log.append("experts"))
    layer = expert_parallel(moe, exchange=exchange)
    y = layer(torch.randn(6, C).requires_grad_())
    log.append("backward")
    y.sum().backward()
    return log


def test_the_shared_expert_computes_while_rows_travel(run):
    forward = ["leaves", "shared", "arrived", "experts", "leaves", "arrived"]
    backward = ["leaves", "arrived", "experts", "leaves", "shared", "arrived"]
    for log in run(order_of_events):
        assert log == [*forward, "backward", *backward]


def clipped(data, expert):
    """Norm and clipped gradients beside those of one process."""
    mesh, rank = make_expert_mesh(data=data, expert=expert), dist.get_rank()
    alone, given = moe_gpt(0), moe_gpt(0)
    ours = ExpertDataParallel(given, mesh)
    text = torch.randint(256, (8, 17), generator=torch.Generator().manual_seed(1))
    mine = text.chunk(4)[rank]
    alone(text[:, :-1], text[:, 1:]).backward()
    ours(mine[:, :-1], mine[:, 1:]).backward()
    ours.sync_gradients()
    wanted = nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    norm = clip_grad_norm_(ours, 0.1)
    name = "blocks.1.mlp.experts.down"
    part = alone.get_parameter(name).grad.chunk(expert)[mesh.get_local_rank("expert")]
    off = (part - ours.module.get_parameter(name).grad).abs().max()
    return wanted.item(), (norm - wanted).abs().item(), off.item()


@pytest.mark.parametrize("layout", [(1, 4), (2, 2)])
def test_clips_by_the_norm_of_one_process(run, layout):
    for wanted, *off in run(clipped, *layout):
        assert wanted > 0.1 and max(off) < TOLERANCE


def balanced_by_a_bias():
    """How far each rank's bias is from one process's, after steps that counts of all ranks move."""
    alone, given = (MoE(C, num_experts=8, top_k=2, hidden=C).double() for _ in range(2))
    drawn(alone, 1), drawn(given, 1)
    ours = expert_parallel(given)
    everyone = torch.randn(4, 3, 16, C, generator=torch.Generator().manual_seed(2)).double()
    for step in range(3):
        alone(everyone[:, step])
        ours(everyone[dist.get_rank(), step])
        alone.router.update_bias(alone.routing.counts(), rate=0.05)
        ours.router.update_bias(ours.asked_E, rate=0.05)
    moved = alone.router.bias_E.abs().max().item()
    return moved, (alone.router.bias_E - ours.router.bias_E).abs().max().item()


def test_the_bias_that_balances_is_one_processs(run):
    """With a rank's own counts, biases would drift apart, and routers with them."""
    for moved, off in run(balanced_by_a_bias):
        assert moved > 0.04 and off == 0


def trained_by_a_loop(data, expert, columns):
    """Largest difference of a loss and of a parameter from one process's, after four steps."""
    job = dict(steps=4, batch_size=8, block=16)
    corpus, mesh = Corpus(limit=9999), make_expert_mesh(data=data, expert=expert, tensor=columns)
    alone, given = moe_gpt(0), moe_gpt(0)
    ours = ExpertDataParallel(given, mesh)
    models = (alone, ours)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    losses, mine = (
        accumulation.train(model, corpus, accumulate=2, optimizer=optimizer, **job)
        for model, optimizer in zip(models, optimizers, strict=True)
    )
    rows = torch.tensor(mine, dtype=torch.float64)
    dist.all_reduce(rows)
    off = (rows / 4 - torch.tensor(losses, dtype=torch.float64)).abs().max()
    name = "blocks.1.mlp.experts.down"
    whole, part = alone.get_parameter(name), ours.module.get_parameter(name)
    if columns == 1:
        whole = whole.chunk(expert)[mesh.get_local_rank("expert")]
        off = torch.maximum(off, (whole - part).abs().max())
    norm = ours.module.norm.weight - alone.norm.weight
    return torch.maximum(off, norm.abs().max()).item()


@pytest.mark.parametrize("layout", [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_the_loop_that_accumulates_reads_what_one_process_reads(run, layout):
    """Ranks along "tensor" read the same, all others their own part."""
    assert max(run(trained_by_a_loop, *layout)) < TOLERANCE


def loops_without_a_wrapper():
    """What loops say to experts that are divided and not averaged."""
    corpus, said = Corpus(limit=9999), []
    mixed = partial(training_step.train, precision="float32")
    for train in (loop.train, accumulation.train, tensor.train, mixed):
        model = expert_parallel(moe_gpt(0))
        try:
            train(model, corpus, steps=1, batch_size=8, block=16)
        except ValueError as error:
            said.append(str(error))
    model = ExpertDataParallel(moe_gpt(0), make_expert_mesh(expert=4))
    try:
        by_hand.take_step(model, None, corpus.batch(0, micro_batch=2, block=16))
    except ValueError as error:
        said.append(str(error))
    return said


def test_loops_refuse_divided_experts_that_nobody_averages(run):
    for said in run(loops_without_a_wrapper):
        assert [text.split(",")[0] for text in said] == [
            *["model holds a ExpertParallel"] * 4,
            "model's experts are divided over ranks",
        ]
        assert all("ExpertDataParallel" in text for text in said)


def states():
    """Save and load: the whole state, a rank's own, another rank's."""
    mesh = make_expert_mesh(expert=4)
    alone = moe_gpt(0)
    ours = ExpertDataParallel(moe_gpt(0), mesh).module
    whole = whole_state_dict(ours)
    same = alone.state_dict().keys() == whole.keys() and all(
        whole[name].equal(value) for name, value in alone.state_dict().items()
    )
    ours.load_state_dict(moe_gpt(3).state_dict())
    loaded = whole_state_dict(ours)
    same &= all(loaded[name].equal(value) for name, value in moe_gpt(3).state_dict().items())
    own = ours.state_dict()
    ours.load_state_dict(own)
    everyone = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    try:
        ours.load_state_dict(everyone[dist.get_rank() - 1])
    except (ValueError, RuntimeError) as error:
        return same, str(error)
    return same, ""


def test_a_state_says_whose_experts_it_holds(run):
    for rank, (same, words) in enumerate(run(states)):
        assert same
        theirs, mine = ((rank - 1) % 4) * 2, rank * 2
        assert f"experts {theirs} to {theirs + 1}, and this rank experts {mine} to {mine + 1}" in (
            words
        )


class LouderMoE(MoE):
    def forward(self, x):
        return 2 * super().forward(x)


def refused(what):
    """In every rank: the refusal's words."""
    rank = dist.get_rank()
    options = {
        "more ranks": {"num_experts": 3},
        "not divisible": {"num_experts": 6},
        "capacity 0": {"num_experts": 4, "capacity_factor": 0},
        "capacity nan": {"num_experts": 4, "capacity_factor": float("nan")},
        "settings": {"num_experts": 4, "top_k": 1 + (rank == 2)},
        "sizes": {"num_experts": 4, "hidden": 16 + (rank == 1)},
    }.get(what, {"num_experts": 4})
    moe = drawn(MoE(C, **({"top_k": 1} | options)), 1)
    x = torch.randn(2, 5, C)
    if what == "no moe":
        return expert_parallel(nn.Linear(2, 2))
    if what == "sides":
        return make_expert_mesh(data=2, expert=3)
    if what == "hidden":
        odd = drawn(MoE(C, num_experts=4, hidden=15), 1)
        return ExpertDataParallel(odd, make_expert_mesh(expert=2, tensor=2))
    if what == "tensor state":
        divided = ExpertDataParallel(moe, make_expert_mesh(expert=2, tensor=2))
        everyone = [None] * 4
        dist.all_gather_object(everyone, divided.state_dict())
        return divided.load_state_dict(everyone[rank ^ 1])  # the same experts, another part
    if what == "own forward":
        moe = LouderMoE(C, num_experts=4)
    layer = expert_parallel(nn.Sequential(moe))
    if what == "twice":
        return expert_parallel(layer)
    if what == "nan" and rank in (1, 3):
        x[0, : rank + 1] = float("nan")
    if what == "infinite" and rank == 2:
        x[1, 4] = float("inf")
    if what == "ddp":
        return DistributedDataParallel(layer)(x)
    if what == "fsdp":
        return fully_shard(layer, mesh=init_device_mesh("cpu", (4,)))(x)
    if what == "drift":
        return replica_drift(layer)
    if what == "autocast":
        with torch.autocast("cpu", torch.bfloat16, enabled=rank == 0):
            return layer(x)
    if what == "no_grad":
        with torch.set_grad_enabled(rank != 3):
            return layer(x)
    if what in ("data", "zero 1", "zero 3"):
        return {"data": BucketedDataParallel, "zero 1": ZeRO1, "zero 3": ZeRO3}[what](layer)
    if what == "copies":  # those that hold the same experts: dense gradients would be wrong
        mesh = make_expert_mesh(data=2, expert=2)
        twice = expert_parallel(nn.Sequential(drawn(MoE(C, num_experts=4), 1)), mesh["expert"])
        return BucketedDataParallel(twice, process_group=mesh.get_group("data"))
    if what == "mesh":
        return MeshParallel(expert_parallel(moe_gpt(0)), make_mesh(data=4))
    return layer(x)


class Looked(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.table = nn.Embedding(10, C, sparse=sparse)
        self.moe = MoE(C, num_experts=4)

    def forward(self, x):
        return self.moe(self.table(x)).square().mean()


def gradient_of_a_table(sparse):
    torch.manual_seed(0)
    model = ExpertDataParallel(Looked(sparse), make_expert_mesh(data=2, expert=2))
    model(torch.tensor([1, 2, dist.get_rank()])).backward()
    model.sync_gradients()
    return model.module.table.weight.grad.tolist()


def test_sparse_gradients_are_averaged(run):
    assert run(gradient_of_a_table, True) == run(gradient_of_a_table, False)


REFUSALS = {
    "more ranks": "0: 4 ranks cannot share num_experts=3: 1 of them would have none",
    "not divisible": "0: num_experts=6 cannot be cut into 4 equal parts",
    "capacity 0": "capacity_factor=0 is not allowed: give a number above 0",
    "capacity nan": "capacity_factor=nan is not allowed",
    "settings": "MoE layers have another top_k or capacity_factor in ranks [2] than in rank 0",
    "sizes": "shapes or dtypes of its parameters, or which of them are frozen, in ranks [1]",
    "no moe": "Linear has no MoE in it",
    "own forward": "0 is a LouderMoE with a forward() of its own",
    "sides": "data x expert x tensor = 2 x 3 x 1 is 6 ranks, and there are 4",
    "hidden": "hidden width of the experts=15 cannot be cut into 2 equal parts",
    "tensor state": "load what this rank has saved",
    "twice": "divided before",
    "nan": "the router of 0 gives logits that are NaN or infinite in rank 1: 2 of 10 tokens (20%); "
    "rank 3: 4 of 10 tokens (40%)",
    "infinite": "in rank 2: 1 of 10 tokens (10%)",
    "ddp": "0 is in a DistributedDataParallel",
    "fsdp": "0 is in a fully_shard",
    "drift": "parameter 0.experts.up is cut over the ranks [0, 1, 2, 3]",
    "autocast": "use the same autocast and the same no_grad in all ranks",
    "no_grad": "use the same autocast and the same no_grad in all ranks",
    **dict.fromkeys(["data", "copies", "zero 1", "zero 3", "mesh"], "ExpertDataParallel"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_in_every_rank(run, what):
    with pytest.raises(RankError) as caught:
        run(partial(refused, what))
    failures = caught.value.failures
    assert len(failures) == 4
    for failure in failures.values():
        kind = "FloatingPointError" if what in ("nan", "infinite") else "ValueError"
        assert failure["type"] == kind and REFUSALS[what] in failure["message"], failure


@pytest.mark.parametrize(
    "sizes", [(8, 2, 4), (6, 3, 3), (6, 3, 2), (5, 5, 5), (4, 1, 2), (6, 6, 1)]
)
def test_in_how_many_ranks_a_token_is(sizes):
    num_experts, top_k, ranks = sizes
    each = num_experts // ranks
    choices = [*itertools.combinations(range(num_experts), top_k)]
    mean = sum(len({expert // each for expert in chosen}) for chosen in choices) / len(choices)
    assert distinct_ranks(*sizes) == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("sizes", [(6, 2, 4), (4, 5, 2), (4, 0, 2), (4, 2, 0)])
def test_ranks_of_a_token_that_cannot_be(sizes):
    with pytest.raises(ValueError, match="divide the experts"):
        distinct_ranks(*sizes)


def in_libraries(top_k):
    """How far each implementation is from ours: the output, and the largest of the gradients."""
    x = torch.randn(3, 8, C, generator=torch.Generator().manual_seed(dist.get_rank()))
    x.requires_grad_()  # so that tokens' gradients travel too
    exchanges = {"direct": direct.all_to_all}
    make = partial(drawn_anew, top_k)
    found = {}
    for name, layer in expert_peers.layers(make, exchanges).items():
        x.grad = None
        y = expert_peers.step(layer, x)
        found[name] = [y, x.grad, *expert_peers.gradients(layer).values()]
    ours = found.pop("ours")
    return {
        name: [(a - b).norm().item() / b.norm().item() for a, b in zip(theirs, ours, strict=True)]
        for name, theirs in found.items()
    }


def drawn_anew(top_k):
    return drawn(MoE(C, num_experts=8, top_k=top_k, hidden=C), 1)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_layers_of_other_libraries_give_the_same_numbers(run, top_k):
    pytest.importorskip("deepspeed")
    for found in run(in_libraries, top_k):
        assert found.keys() == {"ours, direct", "torch", "DeepSpeed"}
        # float32 sums of some ten numbers in another order
        assert all(off < 1e-5 for offs in found.values() for off in offs), found


def cut_as_tensors(name, whole, mesh):
    """This rank's part of what one process has."""
    parts = {side: (mesh[side].size(), mesh.get_local_rank(side)) for side in mesh.mesh_dim_names}
    by_expert, by_tensor = parts["expert"], parts["tensor"]
    if ".experts." in name:
        whole = whole.chunk(by_expert[0])[by_expert[1]]
        dim = {"up": 2, "up_bias": 1, "down": 1, "down_bias": None}[name.rpartition(".")[2]]
    elif re.match("token_embedding|head", name) or re.search(r"\b[qkv].weight|up", name):
        dim = 0
    else:
        dim = 1 if name.endswith(("proj.weight", "down.weight")) else None
    return whole if dim is None else whole.chunk(by_tensor[0], dim)[by_tensor[1]]


def with_tensors(data, expert, tensor, case="", steps=3):
    """As ``beside_one_process``, with matrices cut too; also the norm to clip by."""
    mesh = make_expert_mesh(data=data, expert=expert, tensor=tensor)
    alone = change(moe_gpt(0), case)
    ours = ExpertDataParallel(change(moe_gpt(dist.get_rank()), case), mesh)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=LR) for m in (alone, ours)]
    random = torch.Generator().manual_seed(1)
    copies, place = data * expert, mesh.get_local_rank("data") * expert
    place += mesh.get_local_rank("expert")
    off = 0.0
    for _ in range(steps):
        text = torch.randint(256, (8, 17), generator=random)
        mine = text.chunk(copies)[place]
        for optimizer in optimizers:
            optimizer.zero_grad()
        alone(text[:, :-1], text[:, 1:]).backward()
        ours(mine[:, :-1], mine[:, 1:]).backward()
        ours.sync_gradients()
        norms = clip_grad_norm_(alone, 0.1), clip_grad_norm_(ours, 0.1)
        off = max(off, (norms[0] - norms[1]).abs().item())
        whole = dict(alone.named_parameters())
        for name, part in ours.module.named_parameters():
            if part.requires_grad:
                wanted = cut_as_tensors(name, whole[name].grad, mesh)
                off = max(off, (part.grad - wanted).abs().max().item())
        for optimizer in optimizers:
            optimizer.step()
    for name, part in ours.module.named_parameters():
        off = max(off, (part - cut_as_tensors(name, whole[name], mesh)).abs().max().item())
    try:
        whole_state_dict(ours.module)
    except ValueError as error:
        return off, norms[0].item(), str(error)


@pytest.mark.parametrize("case", ["", "frozen shared", "tied experts"])
@pytest.mark.parametrize("layout", [(1, 2, 2), (2, 1, 2)])
def test_equals_one_process_with_tensors_cut_too(run, layout, case):
    for off, norm, words in run(with_tensors, *layout, case):
        assert off < TOLERANCE and norm > 0.1
        assert "cut by tensor parallelism" in words


def with_activations_checkpointed():
    """Gradients with activations kept, and with the layer computed again in backward."""
    layer = expert_parallel(
        drawn(MoE(C, num_experts=8, top_k=2, shared=nn.Linear(C, C)), 1).double()
    )
    x = torch.randn(9, C, generator=torch.Generator().manual_seed(dist.get_rank())).double()
    found = []
    for ours, again in ((True, False), (True, True), (False, True)):
        layer.zero_grad()
        inputs = x.clone().requires_grad_()
        if not again:
            y = layer(inputs)
        elif ours:
            y = course_checkpoint(layer, inputs)
        else:
            y = checkpoint(layer, inputs, use_reentrant=False)
        y.square().mean().backward()
        found.append([inputs.grad, *(p.grad.clone() for p in layer.parameters())])
    kept, *others = found
    return all(a.equal(b) for other in others for a, b in zip(kept, other, strict=True))


def test_a_checkpointed_layer_sends_again_in_backward(run):
    assert all(run(with_activations_checkpointed))
