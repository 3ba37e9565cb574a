"""Collectives from point-to-point must do what torch's own do, in real ranks.

Tolerances. Integers, and float sums whose order of addition is known, are compared bit for bit:
each algorithm's order is played again in one process. Gloo adds in an order of its own, so beside
it a float sum of p numbers may differ by (p - 1) roundings of the sum of magnitudes, on each side.
"""

from __future__ import annotations

import os
import sys
import time

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from dlcourse import RankError, Ranks
from dlcourse.collectives import buffers, direct, one_sided, p2p
from dlcourse.collectives.benchmark import CALLS, measure
from dlcourse.collectives.compat import all_gather_single
from dlcourse.collectives.naive import naive_all_reduce
from dlcourse.collectives.ring import ring_all_gather, ring_all_reduce, ring_reduce_scatter
from dlcourse.collectives.shared import shared_all_reduce
from dlcourse.collectives.shared_calls import (
    shared_all_gather,
    shared_all_to_all,
    shared_broadcast,
    shared_reduce_scatter,
)
from dlcourse.collectives.tcp_counters import wire_counters
from dlcourse.collectives.tree import tree_all_reduce, tree_broadcast, tree_reduce
from dlcourse.formulas.traffic import ALGORITHMS, algorithm_bytes, busiest_rank_bytes

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

ALL_REDUCE = {
    "ring": ring_all_reduce,
    "tree": tree_all_reduce,
    "naive": naive_all_reduce,
    "direct": direct.all_reduce,
}
if hasattr(os, "memfd_create"):
    ALL_REDUCE["shared"] = shared_all_reduce
SUM, MAX = "SUM", "MAX"  # ReduceOp itself cannot be sent to a rank
DTYPES = [torch.float32, torch.bfloat16, torch.int64]


@pytest.fixture(scope="module")
def run(num_ranks):
    with Ranks(num_ranks, default=False) as pool:
        yield pool.run


def on_ranks(*numbers):
    """Run a test in this many ranks; pytest groups the tests by number, one pool for each."""
    return pytest.mark.parametrize("num_ranks", numbers, scope="module")


def sizes(p):
    return sorted({0, 1, p - 1, p, p + 1, 1001, 65_537})


def part_of(rank, n, dtype):
    """What `rank` brings along: the same wherever it is computed."""
    generator = torch.Generator().manual_seed(1000 * n + rank)
    if dtype.is_floating_point:
        return torch.randn(n, generator=generator).to(dtype)
    return torch.randint(-(10**12), 10**12, (n,), generator=generator)


def in_ring_order(parts):
    """Chunk c: x_{c+1} + x_{c+2} + ... + x_c."""
    p, chunks = len(parts), []
    for c in range(p):
        total = parts[(c + 1) % p].tensor_split(p)[c].clone()
        for k in range(2, p + 1):
            total += parts[(c + k) % p].tensor_split(p)[c]
        chunks.append(total)
    return torch.cat(chunks)


def in_tree_order(parts):
    parts = [part.clone() for part in parts]
    keep = 1 << (len(parts) - 1).bit_length()
    while keep := keep >> 1:
        for place in range(keep):
            if place + keep < len(parts):
                parts[place] += parts[place + keep]
    return parts[0]


def in_rank_order(parts):
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


ORDER = {
    "ring": in_ring_order,
    "tree": in_tree_order,
    "naive": in_rank_order,
    "direct": in_rank_order,
    "shared": in_rank_order,
}


def same_in_all_ranks(tensor):
    everyone = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, tensor)
    return all(torch.equal(tensor, other) for other in everyone)


def all_reduce_problems(name, op_name):
    """What is wrong with an all-reduce in this rank; an empty list if nothing is."""
    rank, p = dist.get_rank(), dist.get_world_size()
    op, problems = getattr(dist.ReduceOp, op_name), []
    for dtype in DTYPES:
        for n in sizes(p):
            parts = [part_of(r, n, dtype) for r in range(p)]
            ours, theirs = parts[rank].clone(), parts[rank].clone()
            returned = ALL_REDUCE[name](ours, op)
            dist.all_reduce(theirs, op=op)
            case = f"{dtype} n={n}"
            if returned is not ours:
                problems.append(f"{case}: not in place")
            if not same_in_all_ranks(ours):
                problems.append(f"{case}: ranks differ")
            if dtype == torch.int64 or op_name == MAX:
                if not torch.equal(ours, theirs):
                    problems.append(f"{case}: not torch's")
                continue
            if not torch.equal(ours, ORDER[name](parts)):
                problems.append(f"{case}: not the sum in its own order")
            magnitude = torch.stack(parts).double().abs().sum(0)
            allowed = 2 * (p - 1) * torch.finfo(dtype).eps * magnitude
            if not ((ours.double() - theirs.double()).abs() <= allowed).all():
                problems.append(f"{case}: too far from torch's")
    return problems


@on_ranks(1, 2, 3, 4, 5)
@pytest.mark.parametrize("op", [SUM, MAX])
@pytest.mark.parametrize("name", ALL_REDUCE)
def test_all_reduce(run, num_ranks, name, op):
    assert run(all_reduce_problems, name, op) == [[]] * num_ranks


def parts_problems():
    """Reduce-scatter and all-gather, ring and direct, and that they leave the input alone."""
    rank, p = dist.get_rank(), dist.get_world_size()
    problems = []
    for dtype in DTYPES:
        for n in sizes(p):
            parts = [part_of(r, n, dtype) for r in range(p)]
            whole = part_of(77, n, dtype)
            mine = whole.tensor_split(p)[rank].clone()
            case = f"{dtype} n={n}"

            x = parts[rank].clone()
            if not torch.equal(ring_reduce_scatter(x), in_ring_order(parts).tensor_split(p)[rank]):
                problems.append(f"{case}: ring_reduce_scatter")
            expected = in_rank_order(parts).tensor_split(p)[rank]
            x, out = parts[rank].clone(), torch.empty_like(mine)
            if direct.reduce_scatter(out, x) is not out or not torch.equal(out, expected):
                problems.append(f"{case}: direct.reduce_scatter")
            if not torch.equal(x, parts[rank]):
                problems.append(f"{case}: direct.reduce_scatter changed its input")
            x = parts[rank].clone()
            out = x.tensor_split(p)[rank]
            direct.reduce_scatter(out, x)
            if not torch.equal(out, expected):
                problems.append(f"{case}: direct.reduce_scatter in place")
            if n % p == 0 and n:
                out = [torch.empty_like(c) for c in whole.chunk(p)]
                theirs = torch.empty_like(mine)
                dist.reduce_scatter(theirs, list(parts[rank].chunk(p)))
                if dtype == torch.int64 and not torch.equal(theirs, expected):
                    problems.append(f"{case}: direct.reduce_scatter is not torch's")
                dist.all_gather(out, mine)
                if not torch.equal(torch.cat(out), whole):
                    problems.append(f"{case}: the test's own idea of all-gather is wrong")

            x = torch.zeros_like(whole)
            x.tensor_split(p)[rank].copy_(mine)
            if not torch.equal(ring_all_gather(x), whole):
                problems.append(f"{case}: ring_all_gather")
            x = torch.zeros_like(whole)
            if not torch.equal(direct.all_gather(x, mine), whole):
                problems.append(f"{case}: direct.all_gather")
    return problems


@on_ranks(1, 2, 3, 4, 5)
def test_reduce_scatter_and_all_gather(run, num_ranks):
    assert run(parts_problems) == [[]] * num_ranks


def all_to_all_problems():
    rank, p = dist.get_rank(), dist.get_world_size()
    problems = []
    for row in [(), (3,), (2, 3)]:
        x = torch.arange(2 * p).view(-1, *[1] * len(row)).expand(2 * p, *row) + 1000 * rank
        ours, theirs = (
            torch.empty(2 * p, *row, dtype=torch.int64),
            torch.empty(2 * p, *row, dtype=torch.int64),
        )
        direct.all_to_all(ours, x.contiguous())
        dist.all_to_all_single(theirs, x.contiguous())
        if not torch.equal(ours, theirs):
            problems.append(f"equal rows of {row}")
        # Rank r sends r + k rows to rank k, and nothing from rank 0 to itself.
        sends, receives = [rank + k for k in range(p)], [k + rank for k in range(p)]
        x = torch.randn(sum(sends), *row)
        ours, theirs = torch.empty(sum(receives), *row), torch.empty(sum(receives), *row)
        direct.all_to_all(ours, x, receives, sends)
        dist.all_to_all_single(theirs, x, receives, sends)
        if not torch.equal(ours, theirs):
            problems.append(f"unequal rows of {row}")
    return problems


@on_ranks(1, 2, 3, 4, 5)
def test_all_to_all(run, num_ranks):
    assert run(all_to_all_problems) == [[]] * num_ranks


def tree_problems():
    rank, p = dist.get_rank(), dist.get_world_size()
    problems = []
    for root in range(p):
        for n in (0, 1, 1001):
            x = part_of(rank, n, torch.int64)
            tree_broadcast(x, src=root)
            if not torch.equal(x, part_of(root, n, torch.int64)):
                problems.append(f"broadcast from {root}, n={n}")
            x = part_of(rank, n, torch.int64)
            tree_reduce(x, dst=root)
            if rank == root and not torch.equal(
                x, sum(part_of(r, n, torch.int64) for r in range(p))
            ):
                problems.append(f"reduce to {root}, n={n}")
    return problems


@on_ranks(1, 2, 3, 4, 5)
def test_tree_from_every_root(run, num_ranks):
    assert run(tree_problems) == [[]] * num_ranks


def shape_problems():
    """Any shape, a parameter that requires a gradient, and memory that is used again."""
    rank, p = dist.get_rank(), dist.get_world_size()
    problems = []
    for name, all_reduce in ALL_REDUCE.items():
        for shape, dtype in [((64, 9), torch.float32), ((5, 7, 3), torch.int64), ((), torch.int64)]:
            x = torch.full(shape, rank + 1, dtype=dtype)
            parameter = torch.nn.Parameter(x, requires_grad=dtype.is_floating_point)
            all_reduce(parameter)
            if not torch.equal(parameter, torch.full(shape, p * (p + 1) // 2, dtype=dtype)):
                problems.append(f"{name} {shape}")
        # A view from the middle of a tensor: its neighbours stay as they are.
        x = torch.full((30,), float(rank))
        all_reduce(x[10:20])
        expected = torch.full((30,), float(rank))
        expected[10:20] = p * (p - 1) / 2
        if not torch.equal(x, expected):
            problems.append(f"{name} touches what is beside its tensor")
    return problems


@on_ranks(2, 3)
def test_shapes_parameters_and_views(run, num_ranks):
    assert run(shape_problems) == [[]] * num_ranks


ODD_DTYPES = [torch.bool, torch.uint8, torch.int16, torch.float16, torch.float64, torch.complex64]
ODD_DTYPES += [torch.complex128, torch.float8_e4m3fn]


def dtype_problems():
    """Every dtype is summed as one process does, or refused before anything is sent."""
    rank, p, problems = dist.get_rank(), dist.get_world_size(), []

    def of(r, dtype):
        return (torch.arange(7) % 3 == r % 3) if dtype == torch.bool else (torch.arange(7) + r)

    for name, all_reduce in ALL_REDUCE.items():
        for dtype in ODD_DTYPES:
            for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
                x = of(rank, dtype).to(dtype)
                whole = torch.stack([of(r, dtype) for r in range(p)])
                wanted = whole.amax(0) if op == dist.ReduceOp.MAX else whole.sum(0)
                try:
                    all_reduce(x, op)
                except ValueError as error:
                    no_such = "float8" in str(dtype) or (dtype.is_complex and "MAX" in str(op))
                    said = f"op is {op} and the tensor {dtype}, for which torch has no" in str(
                        error
                    )
                    if not (no_such and said):
                        problems.append(f"{name} {dtype} {op}: {error}")
                else:
                    if not torch.equal(x, wanted.to(dtype)):
                        problems.append(f"{name} {dtype} {op}: {x}")
        turned = torch.full((3,), 1 + 1j).conj()
        try:
            all_reduce(turned)
            problems.append(f"{name} conjugate: {turned}")
        except ValueError as error:
            if "resolve_conj()" not in str(error):
                problems.append(f"{name} conjugate: {error}")
    return problems


@on_ranks(3)
def test_other_dtypes(run):
    assert run(dtype_problems) == [[]] * 3


def overlap_problems():
    """Output and input that share memory, where that would mix numbers up."""
    rank, p, problems = dist.get_rank(), dist.get_world_size(), []
    x = torch.arange(float(p)) + 10 * rank
    try:
        direct.all_to_all(x, x)
        problems.append("all_to_all in place")
    except ValueError as error:
        if "output and input share memory" not in str(error):
            problems.append(str(error))
    # The part of another rank as input: it is also where that rank's part arrives
    x = torch.full((p,), float(rank))
    direct.all_gather(x, x[(rank + 1) % p : (rank + 1) % p + 1])
    if x.tolist() != [float(r) for r in range(p)]:
        problems.append(f"all_gather from a part of its output: {x}")
    for call in (direct.all_gather, direct.reduce_scatter):
        output, part = torch.zeros(p), torch.zeros(1, dtype=torch.float64)
        try:
            call(*((output, part) if call is direct.all_gather else (part, output)))
            problems.append(f"{call.__name__} of two dtypes")
        except ValueError as error:
            if "convert one of them" not in str(error):
                problems.append(str(error))
    return problems


@on_ranks(2, 3)
def test_output_and_input_that_do_not_go_together(run, num_ranks):
    assert run(overlap_problems) == [[]] * num_ranks


def reuse_problems():
    """Memory made for a call in which tensors are of another kind is not met by the next."""
    problems = []
    for mode in (torch.inference_mode, FakeTensorMode):
        for name, all_reduce in ALL_REDUCE.items():
            buffers._scratch.clear()
            if (name, mode) == ("shared", FakeTensorMode):
                continue  # looks at numbers, which such tensors have not
            with mode():
                all_reduce(torch.ones(7))
            dist.barrier()
            try:
                x = all_reduce(torch.ones(7)).tolist()
            except Exception as error:
                x = str(error)
            if x != [float(dist.get_world_size())] * 7:
                problems.append(f"{name} after {mode.__name__}: {x}")
    return problems


@on_ranks(3)
@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_after_inference_and_after_fake_tensors(run):
    assert run(reuse_problems) == [[]] * 3


def first_to_last(tensor):
    """One message by each of the three ways."""
    last = dist.get_world_size() - 1
    if dist.get_rank() == 0:
        p2p.isend(tensor, last).wait()
    elif dist.get_rank() == last:
        p2p.irecv(tensor, 0).wait()
    else:
        tensor.add_(1)  # not in it


def to_the_right(tensor):
    rank, p = dist.get_rank(), dist.get_world_size()
    sends = [(torch.zeros_like(tensor), (rank + 1) % p)]
    p2p.exchange(sends=sends, receives=[(tensor, rank - 1 if rank else p - 1)])


def stale_gradients():
    """Calls that change a tensor which autograd keeps, and backward takes the changed numbers."""
    calls = {**ALL_REDUCE, "tree_broadcast": tree_broadcast, "ring_all_gather": ring_all_gather}
    calls |= {"irecv": first_to_last, "exchange": to_the_right}
    stale = []
    for name, call in calls.items():
        x = torch.full((6,), 1.0 + dist.get_rank(), requires_grad=True)
        y = x.exp()  # kept: it is its own gradient
        before = y.detach().clone()
        with torch.no_grad():
            call(y)
        changed = not torch.equal(y, before)
        try:
            y.sum().backward()
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error)
        else:
            stale += [name] * changed
    return stale


@on_ranks(2, 3)
def test_autograd_refuses_numbers_that_were_received_over(run, num_ranks):
    assert run(stale_gradients) == [[]] * num_ranks


def refused_one_after_the_other(calls):
    """What each call says; ``nothing`` where it returns."""
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    return said


def calls_from_outside():
    group = dist.new_group([0, 1])
    x = torch.ones(6)
    said = []
    if dist.get_rank() == 2:
        every = [lambda f=f: f(x, group=group) for f in ALL_REDUCE.values()]
        every += [lambda: tree_broadcast(x, group=group), lambda: ring_all_gather(x, group=group)]
        for module in (direct, one_sided):
            every.append(lambda m=module: m.all_to_all(x.clone(), x, group=group))
        every.append(lambda: p2p.isend(x, 0, group))
        every.append(lambda: p2p.exchange(sends=[(x, 0)], receives=[], group=group))
        said = refused_one_after_the_other(every)
    dist.barrier()
    return said


@on_ranks(3)
def test_a_rank_outside_of_the_group_is_told_so(run):
    said = run(calls_from_outside)[2]
    assert len(said) == len(ALL_REDUCE) + 6
    assert all(text.startswith("group does not contain rank 2") for text in said), said


def messages_to_nobody():
    """The classic: rank + 1 without a modulo, in the last rank. Gloo ends the process."""
    p, x = dist.get_world_size(), torch.ones(2)
    calls = []
    for k in (p, -1, dist.get_rank()):
        calls.append(lambda k=k: p2p.isend(x, k))
        calls.append(lambda k=k: p2p.irecv(x, k))
        calls.append(lambda k=k: p2p.exchange(sends=[(x, k)], receives=[]))
        calls.append(lambda k=k: p2p.start_exchange(sends=[], receives=[(x, k)]))
    return refused_one_after_the_other(calls)


@on_ranks(2)
def test_messages_to_no_other_rank_are_refused(run):
    for said in run(messages_to_nobody):
        assert all("give the number of another rank, 0 to 1" in text for text in said), said


def reduce_a_dtensor():
    x = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (dist.get_world_size(),)))
    return refused_one_after_the_other([lambda f=f: f(x) for f in ALL_REDUCE.values()])


@on_ranks(2)
def test_a_tensor_that_holds_others_is_refused(run):
    """What lies in it is not in its own memory; the tree and naive would wait for ever."""
    for said in run(reduce_a_dtensor):
        assert all(text.startswith("tensor is a DTensor") for text in said), said


def own_part_repeated():
    """Rank r sends itself one row, and expects three."""
    rank, p = dist.get_rank(), dist.get_world_size()
    expected = [1] * p
    expected[rank] = 3
    direct.all_to_all(torch.zeros(p + 2), torch.arange(float(p)), expected, [1] * p)


@on_ranks(2)
def test_a_row_for_oneself_is_not_repeated(run):
    text = r"ValueError: this rank sends itself 1 numbers \(1 rows of input\) and expects 3"
    with pytest.raises(RankError, match=text):
        run(own_part_repeated)


def rows_of_another_shape():
    p = dist.get_world_size()
    output, x = torch.zeros(4 * p), torch.arange(4.0 * p).view(2 * p, 2)
    direct.all_to_all(output, x)
    theirs = torch.zeros(4 * p)
    dist.all_to_all_single(theirs, x)
    return torch.equal(output, theirs)


@on_ranks(2)
def test_rows_may_have_another_shape_where_they_hold_as_much(run):
    assert run(rows_of_another_shape) == [True] * 2


UNLIKE = {  # rank 1's size and dtype; the other ranks have 4 numbers in float32
    "longer": (8, torch.float32),
    "shorter": (2, torch.float32),
    "of another dtype": (4, torch.int32),
    "empty": (0, torch.float32),
}


def unlike_tensors(name, how):
    n, dtype = UNLIKE[how] if dist.get_rank() == 1 else (4, torch.float32)
    every = {**ALL_REDUCE, "tree_broadcast": tree_broadcast, "ring_all_gather": ring_all_gather}
    every[name](torch.ones(n, dtype=dtype))


@pytest.mark.skipif("shared" not in ALL_REDUCE, reason="memfd_create of Linux")
@on_ranks(2, 3)
@pytest.mark.parametrize("how", UNLIKE)
def test_shared_memory_refuses_unlike_tensors_in_every_rank(run, how):
    with pytest.raises(RankError, match=r"raised ValueError: tensor differs between"):
        run(unlike_tensors, "shared", how)
    assert not any(any(problems) for problems in run(all_reduce_problems, "shared", "SUM"))


@pytest.mark.parametrize(
    ("name", "how"),
    [("ring", "of another dtype"), ("tree_broadcast", "longer"), ("direct", "longer")],
)
def test_messages_do_not_meet_unlike_tensors(name, how):
    """Neither wrong numbers nor a rank that is aborted: the ranks wait, and the engine says so."""
    with Ranks(2, default=False, timeout=6) as pool:
        with pytest.raises(RankError) as caught:
            pool.run(unlike_tensors, name, how)
        assert "SIGABRT" not in str(caught.value)
        assert pool.run(dist.get_rank) == [0, 1]


def sizes_in_turn():
    """Rank 1 is slow to take the totals, while the others begin a call of another size."""
    rank, p = dist.get_rank(), dist.get_world_size()
    shared_all_reduce(torch.zeros(100_000))  # memory for all calls
    problems, barrier = [], dist.barrier

    def slow(*args):
        barrier(*args)
        time.sleep(0.01)

    if rank == 1:
        dist.barrier = slow
    try:
        for n in (60_000 // p, 90_000, 7, 50_000) * 2:
            x = torch.full((n,), float(rank + n))
            shared_all_reduce(x)
            if not (x == sum(r + n for r in range(p))).all():
                problems.append(n)
    finally:
        dist.barrier = barrier
    return problems


@pytest.mark.skipif("shared" not in ALL_REDUCE, reason="memfd_create of Linux")
@on_ranks(2, 3)
def test_shared_memory_keeps_calls_of_different_sizes_apart(run, num_ranks):
    assert run(sizes_in_turn) == [[]] * num_ranks


def unlike_where_there_is_memory(n, slow):
    """Rank 1 has another size, ``n``, and is slow to look; then all make a good call."""
    shared_all_reduce(torch.zeros(1000))
    rank, barrier = dist.get_rank(), dist.barrier

    def late(*args):
        barrier(*args)
        time.sleep(0.3)

    if rank == slow:
        dist.barrier = late
    try:
        shared_all_reduce(torch.zeros(n if rank == 1 else 1000))
        said = "nothing"
    except ValueError as error:
        said = str(error)
    finally:
        dist.barrier = barrier
    x = torch.full((1000,), float(rank))
    return said, shared_all_reduce(x).unique().tolist()


@pytest.mark.skipif("shared" not in ALL_REDUCE, reason="memfd_create of Linux")
@on_ranks(3)
@pytest.mark.parametrize(("n", "slow"), [(999, 0), (999, 1), (100_000, 1), (100_000, 2)])
def test_unlike_tensors_are_refused_in_every_rank_of_a_later_call_too(run, n, slow):
    """Whether the memory of the first call is enough, and whoever is the last to see it."""
    for said, total in run(unlike_where_there_is_memory, n, slow):
        assert said.startswith("tensor differs between ranks") and total == [3.0]


def shared_calls_problems(group=None):
    """The other four through shared memory, beside torch's own and beside their order of sums."""
    rank, p, problems = dist.get_rank(group), dist.get_world_size(group), []
    for dtype in [*DTYPES, torch.bool]:
        for n in [*sizes(p), 300 * p]:
            parts = [part_of(r, n, torch.int64 if dtype == torch.bool else dtype) for r in range(p)]
            if dtype == torch.bool:
                parts = [part > 0 for part in parts]
            whole = torch.cat([part.tensor_split(p)[r] for r, part in enumerate(parts)])
            mine, case = parts[rank].tensor_split(p)[rank].clone(), f"{dtype} n={n}"
            found = {}
            for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
                for in_place in (False, True):
                    x = parts[rank].clone()
                    out = x.tensor_split(p)[rank] if in_place else torch.empty_like(mine)
                    assert shared_reduce_scatter(out, x, op, group) is out
                    total = in_rank_order(parts) if op == dist.ReduceOp.SUM else parts[0]
                    for part in parts[1:] if op == dist.ReduceOp.MAX else []:
                        total = torch.maximum(total, part)
                    found[f"reduce_scatter {op} {in_place}"] = (out, total.tensor_split(p)[rank])
                    others = [k for k in range(p) if k != rank]
                    same = (
                        [x.tensor_split(p)[k] for k in others],
                        [parts[rank].tensor_split(p)[k] for k in others],
                    )
                    found[f"reduce_scatter's input {op} {in_place}"] = (
                        tuple(map(torch.cat, same)) if others else (mine, mine)
                    )
            x = torch.zeros_like(whole)
            assert shared_all_gather(x, mine, group) is x
            found["all_gather"] = x, whole
            x = torch.zeros_like(whole)
            x.tensor_split(p)[rank].copy_(mine)
            shared_all_gather(x, x.tensor_split(p)[rank], group)
            found["all_gather in place"] = x, whole
            for src in range(p):
                x = parts[rank].clone()
                assert shared_broadcast(x, src, group) is x
                found[f"broadcast from {src}"] = x, parts[src]
            if n % p == 0:
                x = torch.zeros_like(whole)
                assert shared_all_to_all(x, parts[rank], group) is x
                found["all_to_all"] = x, torch.cat([part.chunk(p)[rank] for part in parts])
                if n:
                    found |= beside_torch(parts[rank], mine, x, group)
            problems += [
                f"{case}: {name}" for name, (ours, want) in found.items() if not ours.equal(want)
            ]
    return problems


def beside_torch(x, mine, swapped, group):
    """{name: (ours, torch's)} of those that add nothing, and of sums of whole numbers."""
    p, rank = dist.get_world_size(group), dist.get_rank(group)
    found, by_bytes = {}, x.view(torch.uint8)
    theirs = torch.empty_like(by_bytes)
    dist.all_to_all_single(theirs, by_bytes, group=group)
    found["torch's all_to_all"] = swapped.view(torch.uint8), theirs
    ours, theirs = torch.empty_like(by_bytes), torch.empty_like(by_bytes)
    part = by_bytes.chunk(p)[rank].clone()
    all_gather_single(theirs, part, group=group)
    found["torch's all_gather"] = shared_all_gather(ours, part, group), theirs
    ours, theirs = by_bytes.clone(), by_bytes.clone()
    dist.broadcast(theirs, group=group, group_src=p - 1)
    found["torch's broadcast"] = shared_broadcast(ours, p - 1, group), theirs
    if x.dtype == torch.int64:
        ours, theirs = torch.empty_like(mine), torch.empty_like(mine)
        dist.reduce_scatter(theirs, list(x.chunk(p)), group=group)
        found["torch's reduce_scatter"] = shared_reduce_scatter(ours, x, group=group), theirs
    elif x.dtype == torch.float32:  # Gloo adds in an order of its own: see the top
        ours, theirs = torch.empty_like(mine), torch.empty_like(mine)
        magnitude = torch.empty_like(mine, dtype=torch.float64)
        dist.reduce_scatter(theirs, list(x.chunk(p)), group=group)
        shared_reduce_scatter(magnitude, x.double().abs(), group=group)
        shared_reduce_scatter(ours, x, group=group)
        allowed = 2 * (p - 1) * torch.finfo(x.dtype).eps * magnitude
        near = (ours.double() - theirs.double()).abs() <= allowed
        found["torch's reduce_scatter"] = near, torch.ones_like(near)
    return found


needs_memory = pytest.mark.skipif("shared" not in ALL_REDUCE, reason="memfd_create of Linux")


@needs_memory
@on_ranks(1, 2, 3, 4, 5)
def test_the_other_calls_through_shared_memory(run, num_ranks):
    assert run(shared_calls_problems) == [[]] * num_ranks


def shared_calls_in_a_group():
    p = dist.get_world_size()
    group = dist.new_group([*range(1, p)][::-1])
    if dist.get_rank() == 0:
        said = []
        for call in shared_calls_of(torch.zeros(4 * (p - 1)), group):
            try:
                call()
            except ValueError as error:
                said.append(str(error).split(":")[0])
        dist.barrier()
        return said
    problems = shared_calls_problems(group)
    dist.barrier()
    return problems


@needs_memory
@on_ranks(3, 4)
def test_the_other_calls_in_a_group_and_outside_of_it(run, num_ranks):
    outside, *inside = run(shared_calls_in_a_group)
    assert inside == [[]] * (num_ranks - 1)
    assert outside == ["group does not contain rank 0"] * 5


def shared_calls_of(x, group=None):
    """All five on a tensor of this size and dtype."""
    p, y = max(dist.get_world_size(group), 1), torch.empty_like(x)
    part = x.tensor_split(p)[max(dist.get_rank(group), 0)].clone()
    return [
        lambda: shared_all_reduce(x, group=group),
        lambda: shared_reduce_scatter(part, x, group=group),
        lambda: shared_all_gather(x, part, group),
        lambda: shared_all_to_all(y, x, group),
        lambda: shared_broadcast(x, 0, group),
    ]


def calls_in_turn(slow):
    """One rank is slow after each barrier, while the others begin the next call, of any kind."""
    rank, p, problems, barrier = dist.get_rank(), dist.get_world_size(), [], dist.barrier
    kinds = ["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast"]
    shared_all_reduce(torch.zeros(1000 * p))  # memory for all calls

    def late(*args):
        barrier(*args)
        time.sleep(0.003)

    if rank == slow:
        dist.barrier = late
    try:
        for turn in range(50):  # every kind after every kind
            n = p * (1 + turn % 7 * 100)
            xs = [torch.full((n,), float(turn * p + r)) for r in range(p)]
            x, y, part = xs[rank].clone(), torch.empty(n), torch.empty(n // p)
            both = torch.cat([part.chunk(p)[r] for r, part in enumerate(xs)])
            kind = kinds[turn // 10 if turn % 2 else turn // 2 % 5]
            if kind == "all_reduce":
                found, want = shared_all_reduce(x), sum(xs)
            elif kind == "reduce_scatter":
                found, want = shared_reduce_scatter(part, x), sum(xs).chunk(p)[rank]
            elif kind == "all_gather":
                found, want = shared_all_gather(y, x.chunk(p)[rank].clone()), both
            elif kind == "all_to_all":
                found, want = shared_all_to_all(y, x), both
            else:
                found, want = shared_broadcast(x, turn % p), xs[turn % p]
            if not found.equal(want):
                problems.append(f"{turn}: {kind}")
    finally:
        dist.barrier = barrier
    return problems


@needs_memory
@on_ranks(3)
@pytest.mark.parametrize("slow", [0, 1, 2])
def test_no_call_writes_what_another_still_reads(run, num_ranks, slow):
    assert run(calls_in_turn, slow) == [[]] * num_ranks


def unlike_calls(how):
    """What each call says where rank 1 has another tensor, or makes another call."""
    rank, said = dist.get_rank(), []
    for number in range(5):
        x = torch.ones(12)
        if rank == 1:
            x = {"longer": torch.ones(24), "dtype": torch.ones(12).int()}.get(how, x)
        call = shared_calls_of(x)[(number + (how == "call" and rank == 1)) % 5]
        if how == "src" and number == 4:
            call = lambda x=x: shared_broadcast(x, int(rank == 1))  # noqa: E731
        elif how == "src" and number == 0:
            op = dist.ReduceOp.MAX if rank == 1 else dist.ReduceOp.SUM
            call = lambda x=x, op=op: shared_all_reduce(x, op)  # noqa: E731
        elif how == "src":
            continue
        try:
            call()
            said.append("nothing")
        except ValueError as error:
            said.append(str(error))
    fine = shared_all_reduce(torch.full((5,), float(rank)))
    return said, fine.unique().tolist()


@needs_memory
@on_ranks(3)
@pytest.mark.parametrize(
    ("how", "says", "times"),
    [
        ("longer", "tensor differs between ranks in size or dtype", 5),
        ("dtype", "tensor differs between ranks in size or dtype", 5),
        ("call", "make the same call in all ranks", 5),
        ("src", "make the same call in all ranks, with the same op or src", 2),
    ],
)
def test_unlike_calls_are_refused_in_every_rank(run, how, says, times):
    for said, fine in run(unlike_calls, how):
        assert len(said) == times and all(says in text for text in said), said
        assert fine == [3.0]


def kept_for_a_gradient(number):
    """A tensor that autograd has kept is overwritten: backward says so, and gives no wrong one."""
    p = dist.get_world_size()
    x, y = torch.ones(4 * p), torch.ones(4 * p)
    part = torch.ones(4)
    weights = {k: torch.ones(len(k), requires_grad=True) for k in (x, y, part)}
    written = [x, part, x, y, x][number]
    loss = (written * weights[written]).sum()
    calls = [
        lambda: shared_all_reduce(x),
        lambda: shared_reduce_scatter(part, x),
        lambda: shared_all_gather(x, part),
        lambda: shared_all_to_all(y, x),
        lambda: shared_broadcast(x, 1),
    ]
    calls[number]()
    if number == 4 and dist.get_rank() == 1:
        return "modified by an inplace operation"  # the source's stays what it was
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)
    return "nothing"


@needs_memory
@on_ranks(2)
@pytest.mark.parametrize("number", range(5))
def test_a_tensor_kept_for_a_gradient_is_known_to_be_overwritten(run, number):
    assert all("modified by an inplace operation" in s for s in run(kept_for_a_gradient, number))


def group_problems():
    """In a group of ranks 1 to p - 1, where a rank's number in the group is another one."""
    p, problems = dist.get_world_size(), []
    members = list(range(1, p))
    group = dist.new_group(members)
    if dist.get_rank() in members:
        for name, all_reduce in ALL_REDUCE.items():
            x = torch.full((7,), float(dist.get_rank()))
            all_reduce(x, group=group)
            if not torch.equal(x, torch.full((7,), float(sum(members)))):
                problems.append(name)
        x = torch.full((7,), float(dist.get_rank()))
        tree_broadcast(x, src=len(members) - 1, group=group)
        if x[0] != p - 1:
            problems.append("tree_broadcast")
        out = torch.empty(len(members))
        direct.all_gather(out, torch.tensor([float(dist.get_rank())]), group=group)
        if out.tolist() != [float(r) for r in members]:
            problems.append("direct.all_gather")
    dist.barrier()
    return problems


@on_ranks(3, 4)
def test_a_group_of_some_ranks(run, num_ranks):
    assert run(group_problems) == [[]] * num_ranks


def grouped_posting_problems():
    """The way messages are posted on NCCL, in pairs, over Gloo here."""
    plain = p2p.RingNeighbours.__init__

    def grouped(self, **kwargs):
        plain(self, **kwargs)
        self.post_at_once = False

    p2p.RingNeighbours.__init__ = grouped
    try:
        return all_reduce_problems("ring", "SUM")
    finally:
        p2p.RingNeighbours.__init__ = plain


@on_ranks(2, 3)
def test_the_ring_when_send_and_receive_are_posted_together(run, num_ranks):
    assert run(grouped_posting_problems) == [[]] * num_ranks


def wire_of(name, n):
    """Bytes that this rank sends when it calls the collective `name` on n bytes."""
    p = dist.get_world_size()
    x, y = torch.zeros(n // 4), torch.zeros(n // 4)
    part = x.view(p, -1)[dist.get_rank()]
    CALLS[name](x, y, part, None)  # the first call may make connections
    dist.barrier()
    before = wire_counters()
    CALLS[name](x, y, part, None)
    dist.barrier()  # all have read what was sent to them; a few hundred bytes of its own
    return wire_counters()[0] - before[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counters of Linux")
@on_ranks(2, 3, 4, 5)
@pytest.mark.parametrize("name", ALGORITHMS)
def test_bytes_on_the_wire_are_those_of_theory(run, num_ranks, name):
    n = 1 << 20
    n -= n % (4 * num_ranks)
    sent = run(wire_of, name, n)
    # Gloo adds a header of under 100 bytes to each message and up to two short notes; with those of
    # the barrier under 5,000 bytes, and half of n is the least that any sends: 1%.
    assert sum(sent) / num_ranks == pytest.approx(algorithm_bytes(name, n, num_ranks), rel=0.02)
    assert max(sent) == pytest.approx(busiest_rank_bytes(name, n, num_ranks), rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counters of Linux")
@on_ranks(2, 4)
def test_gloos_reduce_scatter_sends_an_all_reduce_and_ours_half_of_it(run, num_ranks):
    n = 1 << 20
    theirs = sum(run(wire_of, "torch_reduce_scatter", n))
    all_reduce = sum(run(wire_of, "torch_all_reduce", n))
    for name in ("ring_reduce_scatter", "direct_reduce_scatter"):
        assert sum(run(wire_of, name, n)) == pytest.approx(all_reduce / 2, rel=0.02)
    assert theirs == pytest.approx(all_reduce, rel=0.02)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counters of Linux")
@on_ranks(2, 4)
@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("shared")])
def test_through_shared_memory_no_data_is_sent(run, name):
    n = 1 << 22
    sent = run(wire_of, name, n)
    # Barriers send headers and notes, now more, now fewer of them, but no data: any all-reduce by
    # messages sends n bytes and more.
    assert max(sent) < n / 100


def on_another_machine():
    """As if rank 1 could not see rank 0's memory."""
    group = dist.new_group([0, 1])  # a new one: of the others the memory is there already
    if dist.get_rank() == 1:
        os_open = os.open
        os.open = lambda *args, **kwargs: os_open("/proc/none/fd/0", os.O_RDWR)
    try:
        shared_all_reduce(torch.zeros(3), group=group)
    finally:
        if dist.get_rank() == 1:
            os.open = os_open


@pytest.mark.skipif("shared" not in ALL_REDUCE, reason="memfd_create of Linux")
@on_ranks(2)
def test_shared_memory_says_in_every_rank_that_there_is_none(run):
    with pytest.raises(RankError, match="raised ValueError: the ranks of the group do"):
        run(on_another_machine)


@on_ranks(2)
def test_measure_gives_the_same_plain_rows_in_every_rank(run):
    first, second = run(measure, ["torch_all_reduce", "ring_all_reduce"], [10, 4096], repeats=3)
    assert first == second
    assert [(row["algorithm"], row["bytes"]) for row in first] == [
        ("torch_all_reduce", 16),
        ("ring_all_reduce", 16),
        ("torch_all_reduce", 4096),
        ("ring_all_reduce", 4096),
    ]
    for row in first:
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert len(row["samples"]) == 3
        assert row["busbw"] == pytest.approx(row["bytes"] / row["seconds"])  # 2 (p - 1) / p is 1
        assert row["wire_theory"] == row["bytes"]
        assert row["wire"] is None or row["wire"] >= row["wire_theory"]


@on_ranks(2)
def test_every_collective_can_be_measured(run):
    rows = run(measure, list(CALLS), [4096], repeats=1)[0]
    assert {row["algorithm"] for row in rows} == set(CALLS)


@pytest.mark.parametrize("size", [-8, 0, 2.5, float("nan")])
def test_a_size_that_is_none_is_refused_before_anything_is_sent(size):
    with pytest.raises(ValueError, match=r"sizes contains \S+: give whole numbers of bytes from 1"):
        measure(["ring_all_reduce"], [64, size])


def call(module_name, function_name, *args, **kwargs):
    module = sys.modules[f"dlcourse.collectives.{module_name}"]
    getattr(module, function_name)(*args, **kwargs)


TURNED = torch.zeros(4, 6).t()


@on_ranks(2)
@pytest.mark.parametrize(
    ("message", "module", "function", "args"),
    [
        ("tensor is not contiguous", "ring", "ring_all_reduce", [TURNED]),
        ("tensor is not contiguous", "tree", "tree_all_reduce", [TURNED]),
        ("tensor is not contiguous", "naive", "naive_all_reduce", [TURNED]),
        ("tensor is not contiguous", "direct", "all_reduce", [TURNED]),
        ("input is not contiguous", "direct", "all_to_all", [torch.zeros(6, 4), TURNED]),
        ("src is 2: the group has the ranks 0 to 1", "tree", "tree_broadcast", [TURNED.t(), 2]),
        ("output has 3 elements", "direct", "reduce_scatter", [torch.zeros(3), torch.zeros(4)]),
        ("input has 3 elements", "direct", "all_gather", [torch.zeros(4), torch.zeros(3)]),
        ("pass input_split_sizes", "direct", "all_to_all", [torch.zeros(4), torch.zeros(5)]),
        (
            "output_split_sizes is [1, 2]",
            "direct",
            "all_to_all",
            [torch.zeros(4), torch.zeros(4), [1, 2], [2, 2]],
        ),
        ("input has no dimension", "direct", "all_to_all", [torch.zeros(()), torch.zeros(())]),
        ("tensor is not contiguous", "shared_calls", "shared_broadcast", [TURNED]),
        ("input is not contiguous", "shared_calls", "shared_all_to_all", [TURNED.t(), TURNED]),
        ("output is not contiguous", "shared_calls", "shared_all_gather", [TURNED, TURNED[0]]),
        ("src is 2: the group has", "shared_calls", "shared_broadcast", [TURNED.t(), 2]),
        (
            "output has 3 elements: this rank's part has 2",
            "shared_calls",
            "shared_reduce_scatter",
            [torch.zeros(3), torch.zeros(4)],
        ),
        (
            "input has 3 elements: this rank's part has 2",
            "shared_calls",
            "shared_all_gather",
            [torch.zeros(4), torch.zeros(3)],
        ),
        (
            "output is torch.float32 and input torch.int64: convert one",
            "shared_calls",
            "shared_all_gather",
            [torch.zeros(4), torch.zeros(2).long()],
        ),
        (
            "input has 5 rows, which 2 ranks cannot share equally",
            "shared_calls",
            "shared_all_to_all",
            [torch.zeros(4), torch.zeros(5)],
        ),
        (
            "memory is shared on the CPU",
            "shared_calls",
            "shared_broadcast",
            [torch.zeros(4).to_sparse()],
        ),
        (
            "memory is shared on the CPU",
            "shared",
            "shared_all_reduce",
            [torch.zeros(4).to_sparse()],
        ),
        ("names contains 'rings'", "benchmark", "measure", [["rings"], [4]]),
    ],
)
def test_bad_input_is_named(run, message, module, function, args):
    with pytest.raises(RankError) as caught:
        run(call, module, function, *args)
    assert "ValueError" in str(caught.value)
    assert message in str(caught.value)


def multiply():
    ring_all_reduce(torch.zeros(4), dist.ReduceOp.PRODUCT)


@on_ranks(2)
def test_an_operation_that_is_not_there(run):
    with pytest.raises(RankError, match=r"PRODUCT: use ReduceOp\.SUM or ReduceOp\.MAX"):
        run(multiply)
