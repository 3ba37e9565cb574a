"""The recorder in real ranks: collectives and their times, phases, steps, FLOPs; no traces left."""

from __future__ import annotations

import gc
import json
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _python_dispatch as modes

from dlcourse import Ranks
from dlcourse.measure import Recorder, Run, mark_step
from dlcourse.measure.categories import CATEGORIES
from dlcourse.panel.summary import last_state

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file
pytestmark = pytest.mark.usefixtures("one_thread", "nothing_before")

MB = 1 << 20


@pytest.fixture(scope="module")
def ranks() -> Any:
    with Ranks(2) as pool:
        yield pool


def recorded(body: Callable[..., Any], ledger: bool = True, **options: Any) -> dict[str, Any]:
    """Runs in a rank: the record of body(rank, **options)."""
    rank = dist.get_rank()
    recorder = Recorder(rank, dist.get_world_size(), ledger=ledger)
    gc.collect()  # models of the tests before
    dist.barrier()
    with recorder:
        body(rank, **options)
    dist.barrier()
    return recorder.record


def record(ranks: Ranks, body: Callable[..., Any], **options: Any) -> list[dict[str, Any]]:
    return ranks.run(recorded, body, **options)


def calls(record: dict[str, Any]) -> list[tuple]:
    return [(e["op"], e["seq"], e["bytes"], e["peer"]) for e in record["comm"]]


# ------------------------------------------------------------------------ collectives


def every_collective(rank: int) -> None:
    all_gather_single = getattr(dist, "all_gather_single", None)  # the names from torch 2.13 on
    reduce_scatter_single = getattr(dist, "reduce_scatter_single", None)
    x = torch.ones(1024)  # 4096 bytes
    pair = [torch.empty(1024), torch.empty(1024)]
    dist.all_reduce(x)
    dist.broadcast(x, 0)
    dist.reduce(x, 0)
    dist.all_gather(pair, x)
    (all_gather_single or dist.all_gather_into_tensor)(torch.empty(2048), x)
    dist.reduce_scatter(x, pair)
    (reduce_scatter_single or dist.reduce_scatter_tensor)(torch.empty(512), x)
    dist.all_to_all(pair, [torch.ones(1024), torch.ones(1024)])
    dist.all_to_all_single(torch.empty(1024), x)
    dist.gather(x, pair if rank == 0 else None)
    dist.scatter(x, pair if rank == 0 else None)
    if rank == 0:
        dist.send(x, 1)
        dist.recv(x, 1)
    else:
        dist.recv(x, 0)
        dist.send(x, 0)
    dist.barrier()


def test_every_collective_with_its_bytes(ranks: Ranks) -> None:
    first, second = record(ranks, every_collective)
    expected = [
        ("all_reduce", 4096),
        ("broadcast", 4096),
        ("reduce", 4096),
        ("all_gather", 8192),
        ("all_gather", 8192),
        ("reduce_scatter", 8192),
        ("reduce_scatter", 4096),
        ("all_to_all", 8192),
        ("all_to_all", 4096),
        ("gather", 8192),
        ("scatter", 8192),
    ]
    numbered = [(op, i + 1, size, None) for i, (op, size) in enumerate(expected)]
    barrier = ("barrier", len(expected) + 1, 0, None)
    assert calls(first) == [*numbered, ("send", 1, 4096, 1), ("recv", 1, 4096, 1), barrier]
    assert calls(second) == [*numbered, ("recv", 1, 4096, 0), ("send", 1, 4096, 0), barrier]
    for e in first["comm"] + second["comm"]:
        assert e["group_size"] == 2 and e["group"] == "0"
        assert e["dtype"] == ("" if e["op"] == "barrier" else "float32")
        assert e["start_ns"] < e["end_ns"] < e["start_ns"] + 10e9
    json.dumps(first)
    run = Run([first, second])
    sent = {o["op"]: o["wire_bytes"] for o in run.comm.ops}
    assert sent["all_reduce"] == 4096 and sent["all_gather"] == 8192 and sent["reduce"] == 2048
    assert run.comm.ranks[0]["ops"]["send"]["wire_bytes"] == 4096
    memory = first["memory"]
    assert memory["peaks"]["communication"] >= 4 * 1024 * 4
    assert memory["peaks"]["parameters"] == memory["peaks"]["activations"] == 0


def groups_and_shapes(rank: int) -> None:
    pair = dist.new_group([0, 1])
    alone = dist.new_group([rank], use_local_synchronization=True)
    dist.all_reduce(torch.ones(8, dtype=torch.float64), group=pair)
    dist.all_reduce(torch.ones(8), group=alone)
    splits = [1, 3] if rank == 0 else [2, 2]
    received = [1, 2] if rank == 0 else [3, 2]
    dist.all_to_all_single(torch.empty(sum(received), 256), torch.ones(4, 256), received, splits)
    dist.all_gather_object([None, None], {"rank": rank})


def more_than_are_kept(rank: int) -> None:
    from dlcourse.measure.recorder import collective_calls

    most, collective_calls.MAX_EVENTS = collective_calls.MAX_EVENTS, 3
    try:
        for _ in range(5):
            dist.all_reduce(torch.ones(1024))
        for _ in range(2):  # 1 of 4 rows leaves rank 0, and 3 of 4 rank 1
            splits = [3, 1]
            received = [3, 3] if rank == 0 else [1, 1]
            output = torch.empty(sum(received), 256)
            dist.all_to_all_single(output, torch.ones(4, 256), received, splits)
    finally:
        collective_calls.MAX_EVENTS = most


def test_calls_that_are_too_many_to_keep_are_added_up(ranks: Ranks) -> None:
    records = record(ranks, more_than_are_kept)
    assert [len(r["comm"]) for r in records] == [3, 3]
    json.dumps(records[0])
    comm = Run(records).comm
    assert len(comm.calls) == 6
    for rank, sent in ((0, 1024), (1, 3 * 1024)):
        ops = comm.ranks[rank]["ops"]
        assert (ops["all_reduce"]["calls"], ops["all_reduce"]["bytes"]) == (5, 5 * 4096)
        assert ops["all_reduce"]["wire_bytes"] == 5 * 4096
        assert (ops["all_to_all"]["calls"], ops["all_to_all"]["wire_bytes"]) == (2, 2 * sent)
    for shown in last_state(1, 1.0, records)["ranks"]:
        assert shown["comm_calls"] == {"all_reduce": 5, "all_to_all": 2}
        assert shown["comm_bytes"] == {"all_reduce": 5 * 4096, "all_to_all": 2 * 4096}
    assert {op["op"]: op["calls"] for op in comm.ops} == {"all_reduce": 5, "all_to_all": 2}


def sum_sparse(rank: int) -> None:
    """Three of ten rows of four numbers, as the gradient of a sparse embedding has them."""
    rows = torch.sparse_coo_tensor([[rank, 4, 9]], torch.full((3, 4), rank + 1.0), (10, 4))
    dist.all_reduce(rows)
    whole = rows.to_dense()[:, 0].tolist()
    assert whole == [1.0, 2.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 3.0], whole


@pytest.mark.parametrize("ledger", [True, False])
def test_a_sparse_all_reduce_is_counted_by_its_indices_and_values(
    ranks: Ranks, ledger: bool
) -> None:
    records = record(ranks, sum_sparse, ledger=ledger)
    size = 3 * 8 + 3 * 4 * 4
    for each in records:
        (call,) = each["comm"]
        assert (call["op"], call["bytes"], call["sent_bytes"]) == ("all_reduce", size, size)


def test_groups_uneven_splits_and_objects(ranks: Ranks) -> None:
    first, second = record(ranks, groups_and_shapes)
    by_group: dict[str, list] = {}
    for e in first["comm"]:
        by_group.setdefault(e["group"], []).append(e)
    sizes = sorted((e["dtype"], e["group_size"], e["bytes"]) for g in by_group.values() for e in g)
    assert ("float64", 2, 64) in sizes and ("float32", 1, 32) in sizes
    assert len(by_group) == 3
    sent = [e["sent_bytes"] for r in (first, second) for e in r["comm"] if e["op"] == "all_to_all"]
    assert sent == [3072, 2048]
    assert [e["op"] for e in first["comm"][-2:]] == ["all_gather", "all_gather"]  # sizes, pickles


def asynchronous(rank: int) -> None:
    if rank == 1:
        time.sleep(0.5)
    work = dist.all_reduce(torch.ones(MB), async_op=True)
    a = torch.ones(64, 64)
    over = None
    while over is None or time.monotonic() - over < 0.3:  # works on for a while when it is over
        a = (a @ a).clamp(0, 1)
        if over is None and work.is_completed():
            over = time.monotonic()
    mark_step()  # notes the moment before the wait
    work.wait()


def test_an_asynchronous_collective_ends_when_it_ends(ranks: Ranks) -> None:
    records = record(ranks, asynchronous)
    (early,), (late,) = (r["comm"] for r in records)
    assert early["async"] and late["async"]
    later = (late["start_ns"] - early["start_ns"]) / 1e9
    assert later > 0.1  # half a second on a quiet machine
    assert early["end_ns"] > late["start_ns"], "not at its issue"
    for r, event in zip(records, (early, late), strict=True):
        assert event["end_ns"] < r["steps"][0]["end_ns"] - 0.1e9, "not at wait()"
    timeline = Run(records).timeline
    assert [r["totals"]["waiting"] for r in timeline.ranks] == pytest.approx([later, 0])
    # Nearly all of it on a quiet machine; a busy one takes the computing rank's core away.
    assert min(r["hidden_fraction"] for r in timeline.ranks) > 0


def synchronous(rank: int) -> None:
    a = torch.ones(64, 64)
    for _ in range(3):
        a = (a @ a).clamp(0, 1)
        dist.all_reduce(torch.ones(2 * MB))


def test_a_synchronous_collective_is_not_hidden(ranks: Ranks) -> None:
    timeline = Run(record(ranks, synchronous)).timeline
    for r in timeline.ranks:
        assert r["hidden_fraction"] < 0.5  # near 1 where it is hidden; a busy machine adds to it
        assert r["totals"]["communication"] > 0


def functional(rank: int) -> None:
    import torch.distributed._functional_collectives as collectives

    x = torch.ones(1024)
    y = collectives.all_reduce(x, "sum", dist.group.WORLD)
    new = getattr(collectives, "reduce_scatter_single", None)  # its name from torch 2.13 on
    z = (new or collectives.reduce_scatter_tensor)(x, "sum", 0, dist.group.WORLD)
    time.sleep(0.05)
    assert (y + 1).sum() == 3072 and (z + 1).sum() == 1536


def test_functional_collectives_are_seen_once_and_end(ranks: Ranks) -> None:
    first, _ = record(ranks, functional)
    assert calls(first) == [("all_reduce", 1, 4096, None), ("reduce_scatter", 2, 4096, None)]
    assert all(e["end_ns"] for e in first["comm"])


def overlapping_messages(rank: int) -> None:
    other = 1 - rank
    for i in range(3):
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, torch.ones(100 * (i + 1)), other),
                dist.P2POp(dist.irecv, torch.empty(100 * (i + 1)), other),
            ]
        )
        for work in works:
            work.wait()


def test_messages_are_matched_with_their_other_end(ranks: Ranks) -> None:
    records = record(ranks, overlapping_messages)
    assert calls(records[0])[-2:] == [("send", 3, 1200, 1), ("recv", 3, 1200, 1)]
    assert all(e["end_ns"] for r in records for e in r["comm"])
    run = Run(records)
    assert run.comm.ranks[0]["wire_bytes"] == 400 + 800 + 1200


# ------------------------------------------------------------------------ training


def model_and_data() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
    return model, torch.randn(64, 256)


def distributed_data_parallel(rank: int, steps: int = 4) -> None:
    model, x = model_and_data()
    model = DistributedDataParallel(model, bucket_cap_mb=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mark_step(64, loss)


@pytest.mark.parametrize("ledger", [True, False])
def test_ddp_whose_reducer_is_written_in_cpp(ranks: Ranks, ledger: bool) -> None:
    records = record(ranks, distributed_data_parallel, ledger=ledger)
    run = Run(records)
    parameters = sum(p.nbytes for p in model_and_data()[0].parameters())
    reduced = [e["bytes"] for e in records[0]["comm"] if e["op"] == "all_reduce"]
    assert sum(b for b in reduced if b > 100) == 4 * parameters
    assert len(reduced) > 4  # several buckets
    assert all(e["end_ns"] for e in records[0]["comm"])
    assert run.throughput.steps == 4 and run.throughput.tokens_per_s > 0
    for r in run.timeline.ranks:
        assert all(r["totals"][k] > 0 for k in ("forward", "backward", "optimizer"))
        own = sorted(s[:2] for s in r["spans"] if s[2] not in ("communication", "waiting"))
        assert all(a[1] <= b[0] for a, b in pairwise(own))
        assert 0 <= r["hidden_fraction"] <= 1
    for r in run.memory.ranks:
        assert r["at_peak"]["parameters"] == (parameters if ledger else 0)
        assert (r["peaks"]["communication"] >= parameters) == ledger  # the buckets


def late_rank(rank: int) -> None:
    model, x = model_and_data()
    model = DistributedDataParallel(model)
    for _ in range(2):
        loss = model(x).square().mean()
        if rank == 1:
            time.sleep(0.6)
        loss.backward()


@pytest.mark.parametrize("ledger", [True, False])
def test_what_ddp_waits_for_in_cpp_is_not_own_work(ranks: Ranks, ledger: bool) -> None:
    """rank 0 has no gradient left to compute: until rank 1 comes it only waits."""
    run = Run(record(ranks, late_rank, ledger=ledger))
    patient = run.timeline.ranks[0]["totals"]
    # 1.2 s together, and a busy machine may take half a second of it for backward itself
    assert patient["waiting"] > 0.6
    assert patient["backward"] < 0.6


def hooks_in_backward(rank: int) -> None:
    model, x = model_and_data()
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad))
    model(x).square().mean().backward()
    time.sleep(0.1)  # Gloo's threads hold the last gradients for a moment longer


def test_collectives_from_hooks_in_backward(ranks: Ranks) -> None:
    first, _ = record(ranks, hooks_in_backward)
    sizes = sorted(p.nbytes for p in model_and_data()[0].parameters())
    assert sorted(e["bytes"] for e in first["comm"]) == sizes
    assert first["memory"]["end"]["gradients"] == 0  # the model is gone
    assert first["memory"]["peaks"]["gradients"] == sum(sizes)
    assert first["memory"]["peaks"]["communication"] == 0


def sharded(rank: int) -> None:
    from torch.distributed.fsdp import fully_shard

    model, x = model_and_data()
    for layer in (model[0], model[2]):
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    for _ in range(3):
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        mark_step(64)


def test_fsdp2(ranks: Ranks) -> None:
    first, _ = record(ranks, sharded)
    parameters = sum(p.nbytes for p in model_and_data()[0].parameters())
    end = first["memory"]["end"]
    assert first["memory"]["at_peak"]["optimizer_state"] == pytest.approx(parameters, rel=0.01)
    assert end["parameters"] <= parameters
    moved: dict[str, int] = {}
    for e in first["comm"]:
        moved[e["op"]] = moved.get(e["op"], 0) + e["bytes"]
    assert moved["reduce_scatter"] == 3 * parameters
    assert 3 * parameters <= moved["all_gather"] <= 6 * parameters
    assert all(e["end_ns"] for e in first["comm"])


def tensor_parallel(rank: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    model, x = model_and_data()
    mesh = init_device_mesh("cpu", (2,))
    parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for _ in range(2):
        model(x).square().mean().backward()
    keep.append(model)


keep: list[Any] = []


def test_tensor_parallel_dtensors(ranks: Ranks) -> None:
    first, _ = record(ranks, tensor_parallel)
    shards = 256 * 512 * 2 // 2 * 4 + 512 // 2 * 4 + 256 * 4
    assert first["memory"]["end"]["parameters"] == shards
    assert first["memory"]["end"]["gradients"] == shards
    reduced = [e["bytes"] for e in first["comm"] if e["op"] == "all_reduce"]
    assert reduced.count(64 * 256 * 4) >= 2
    assert first["memory"]["peaks"]["activations"] >= 64 * 256 * 4
    product = 2 * (64 * 256 * 256)  # of half of a layer's weights: 2 forward, 3 backward
    assert first["flops"] == 2 * 5 * product


# ------------------------------------------------------------------------ steps, samples, FLOPs


def test_steps_tokens_and_loss() -> None:
    model, x = model_and_data()
    optimizer = torch.optim.AdamW(model.parameters())
    mark_step(5, 1.0)  # no recorder: nothing happens
    recorder = Recorder(0, 1)
    with recorder:
        time.sleep(0.05)
        for i in range(3):
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            mark_step(tokens=100 + i, loss=loss)
        sample = recorder.sample()
        mark_step()
    steps = recorder.record["steps"]
    assert [s["tokens"] for s in steps] == [100, 101, 102, 0]
    assert steps[0]["loss"] == pytest.approx(float(model_loss())) and steps[3]["loss"] is None
    assert steps[0]["start_ns"] - recorder.record["start_ns"] > 45e6  # at the first forward
    assert all(a["end_ns"] == b["start_ns"] for a, b in pairwise(steps))
    assert sample["steps"] == 3 and sample["tokens"] == 303
    kinds = [s[2] for s in recorder.record["spans"]]
    order = [k for i, k in enumerate(kinds) if i == 0 or k != kinds[i - 1]]
    phases = [kind for kind in order if kind != "compute"]
    assert phases == ["forward", "backward", "optimizer"] * 3


def test_sleep_is_not_work() -> None:
    model, x = model_and_data()
    recorder = Recorder(0, 1)
    with recorder:
        y = model(x)
        time.sleep(0.2)
        y.sum().backward()
    spans = recorder.record["spans"]
    longest = max(b[0] - a[1] for a, b in pairwise(spans))
    assert longest > 0.19e9


def model_loss() -> Tensor:
    model, x = model_and_data()
    return model(x).square().mean().detach()


def attention_step(b: int, h: int, s: int, d: int, kv: int | None = None) -> None:
    q = torch.randn(b, h, s, d, requires_grad=True)
    k, v = (torch.randn(b, kv or h, s, d, requires_grad=True) for _ in range(2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv is not None)
    y.sum().backward()


@pytest.mark.parametrize("grouped", [None, 2])
def test_flops_of_attention_on_cpu(grouped: int | None) -> None:
    b, h, s, d = 2, 4, 64, 16
    forward = 2 * (2 * b * h * s * s * d)  # scores and weighted sum, a multiply-add is two
    recorder = Recorder(0, 1)
    with recorder:
        attention_step(b, h, s, d, grouped)
    fused = recorder.record["flops"]
    with recorder, sdpa_kernel(SDPBackend.MATH):
        attention_step(b, h, s, d, grouped)
    assert recorder.record["flops"] == forward * 3  # backward: two products for each one
    assert fused == forward * 3.5  # and the scores once more


def test_flops_of_a_training_step() -> None:
    model, x = model_and_data()
    products = 2 * (64 * 256 * 512) * 2
    recorder = Recorder(0, 1)
    with recorder:
        for _ in range(2):
            model(x).square().mean().backward()
    # Backward: weights' gradients of both layers, the input's gradient of the second only.
    assert recorder.record["flops"] == 2 * (products + products + products // 2)
    with recorder, torch.inference_mode():
        model(x)
    assert recorder.record["flops"] == products


def test_flops_agree_with_torchs_counter_where_that_is_right() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    x = torch.randn(4, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        model(x).sum().backward()
    recorder = Recorder(0, 1)
    with recorder:
        model(x).sum().backward()
    assert recorder.record["flops"] == counter.get_total_flops() > 0


def test_flops_of_products_into_memory_that_is_there() -> None:
    a, b, c = torch.randn(4, 8), torch.randn(8, 3), torch.empty(4, 3)
    recorder = Recorder(0, 1)
    with recorder:
        torch.mm(a, b, out=c)
        torch.matmul(a, b, out=c)
        torch.addmm(c, a, b, out=c)
        torch.add(c, 1, out=c)  # no product
    assert recorder.record["flops"] == 3 * 2 * 4 * 8 * 3


def stuck() -> tuple[dict[str, Any] | None, float]:
    rank = dist.get_rank()
    recorder = Recorder(rank, 2)
    recorder.start()
    dist.barrier()
    if rank == 1:
        time.sleep(0.6)
        dist.all_reduce(torch.ones(4))
        return recorder.stop()["rank"], 0.0
    seen, cost = [], []

    def watch() -> None:
        for _ in range(4):
            time.sleep(0.1)
            before = time.perf_counter()
            seen.append(recorder.sample())
            cost.append(time.perf_counter() - before)

    thread = threading.Thread(target=watch)
    thread.start()
    dist.all_reduce(torch.ones(4))
    thread.join()
    recorder.stop()
    return seen[-1], min(cost)


def test_sample_tells_what_a_rank_waits_in(ranks: Ranks) -> None:
    (sample, cost), _ = ranks.run(stuck)
    assert sample["collective"]["op"] == "all_reduce" and sample["collective"]["seq"] == 2
    assert time.monotonic_ns() - sample["collective"]["since_ns"] > 0.2e9
    assert sample["comm_calls"] == {"barrier": 1, "all_reduce": 1}
    assert sample["comm_bytes"] == {"barrier": 0, "all_reduce": 16}
    assert list(sample["memory"]) == list(CATEGORIES)
    assert sample["pss_bytes"] > 10 * MB
    assert cost < 200e-6


# ------------------------------------------------------------------------ no traces left


def traces() -> list[Any]:
    """What the recorder puts into torch."""
    from torch.nn.modules import module
    from torch.optim import optimizer

    return [
        modes._get_current_dispatch_mode_stack(),
        torch.autograd._engine_run_backward,
        torch.UntypedStorage.resize_,
        dist.Work.wait,
        torch._C.Future.wait,
        len(module._global_parameter_registration_hooks),
        len(module._global_forward_pre_hooks),
        len(optimizer._global_optimizer_pre_hooks),
        len(optimizer._global_optimizer_post_hooks),
        torch._C._dispatch_has_kernel_for_dispatch_key("c10d::allreduce_", "BackendSelect"),
    ]


class Failing(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        raise ZeroDivisionError


def fails_in_forward(model: nn.Module, x: Tensor) -> None:
    model(x[:, :3])


def fails_in_backward(model: nn.Module, x: Tensor) -> None:
    y = model(x)
    y.register_hook(lambda g: 1 / 0)
    y.sum().backward()


def fails_in_the_optimizer(model: nn.Module, x: Tensor) -> None:
    Failing(model.parameters()).step()


def leaves_a_mode_behind(model: nn.Module, x: Tensor) -> None:
    class Mine(modes.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            return func(*args, **(kwargs or {}))

    Mine().__enter__()
    raise KeyboardInterrupt


def interrupted(model: nn.Module, x: Tensor) -> None:
    import _thread

    over = threading.Event()

    def press(delay: float = 0.1) -> None:
        while not over.wait(delay):
            _thread.interrupt_main()
            delay = 5  # Python drops one that comes while it clears up an object

    thread = threading.Thread(target=press)
    thread.start()
    limit = time.monotonic() + 120
    try:
        while time.monotonic() < limit:
            model(x).sum().backward()
        pytest.fail("no press has ended it")
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("ledger", [True, False])
@pytest.mark.parametrize(
    "body",
    [
        fails_in_forward,
        fails_in_backward,
        fails_in_the_optimizer,
        interrupted,
        leaves_a_mode_behind,
    ],
)
def test_a_failed_cell_leaves_no_trace_and_the_next_one_works(
    body: Callable[..., None], ledger: bool
) -> None:
    before = traces()
    model, x = model_and_data()
    recorder = Recorder(0, 1, ledger=ledger)
    recorder.start()
    if ledger:
        assert traces() != before
    with pytest.raises((Exception, KeyboardInterrupt)):
        body(model, x)
    record = recorder.stop()
    json.dumps(record)
    after = traces()
    while modes._get_current_dispatch_mode():  # the learner's own mode is not ours to remove
        modes._pop_mode()
    if body is leaves_a_mode_behind:
        assert [type(m).__name__ for m in after[0]] == ["Mine"]
        after[0] = []
    assert after == before
    optimizer = torch.optim.AdamW(model.parameters())
    with recorder:
        for _ in range(4):
            model.zero_grad()
            model(x).sum().backward()
            optimizer.step()
            mark_step(1)
    assert len(recorder.record["steps"]) == 4
    assert {"forward", "backward", "optimizer"} <= {s[2] for s in recorder.record["spans"]}
    if ledger:
        parameters = sum(p.nbytes for p in model.parameters())
        assert recorder.record["memory"]["end"]["gradients"] == parameters


def test_a_recorder_inside_another_records_instead_of_it() -> None:
    outer, inner = Recorder(0, 1), Recorder(0, 1)
    model, x = model_and_data()
    before = traces()
    with outer:
        with inner:
            model(x)
            mark_step(1)
        mark_step(2)
    assert [s["tokens"] for s in inner.record["steps"]] == [1]
    assert [s["tokens"] for s in outer.record["steps"]] == [2]
    assert traces() == before


def test_start_twice_and_stop_without_start() -> None:
    recorder = Recorder(0, 1)
    before = traces()
    recorder.start()
    mark_step(1)
    recorder.start()
    mark_step(2)
    assert [step["tokens"] for step in recorder.stop()["steps"]] == [2], "the first is thrown away"
    assert traces() == before
    with pytest.raises(ValueError, match="start"):
        recorder.stop()


def test_importing_run_and_mark_step_lazily() -> None:
    import subprocess

    code = (
        "import sys; from dlcourse.measure import Run; import dlcourse.measure.run;"
        "assert 'torch' not in sys.modules; from dlcourse.measure import mark_step;"
        "assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
