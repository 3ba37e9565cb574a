"""Ring attention must be full attention, in value and gradient.

Tolerances: partial softmaxes are merged by their log-sum-exp, which rounds otherwise than one
softmax does: 1e-12 in float64, and in float32 2e-6 for values of size 1.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from dlcourse import Ranks
from dlcourse.measure.recorder import Recorder
from dlcourse.parallel.context import (
    attend,
    blocks_of_work,
    chunks_of,
    merge,
    ring_attention,
    split_sequence,
)
from dlcourse.parallel.tensor_vocabulary import parallel_cross_entropy
from dlcourse.training.mixed_precision.autocast import Autocast

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file


@pytest.fixture(scope="module")
def run():
    with Ranks(4, default=False) as pool:
        yield pool.run


def ring_beside_whole(dtype, balanced, T=24):
    """Largest differences of the output and of the gradients of q, k and v; bytes sent."""
    random = torch.Generator().manual_seed(0)
    q, k, v, weight = (torch.randn(2, 3, T, 8, generator=random, dtype=dtype) for _ in range(4))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = F.scaled_dot_product_attention(*whole, is_causal=True)
    (wanted * weight).sum().backward()

    def mine(x):
        return split_sequence(x, dim=2, balanced=balanced)

    parts = [mine(x).clone().requires_grad_() for x in (q, k, v)]
    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    recorder.start()
    out = ring_attention(*parts, balanced=balanced)
    (out * mine(weight)).sum().backward()
    comm = recorder.stop()["comm"]
    sent = sum(event["bytes"] for event in comm if event["op"] == "send")
    off = [(out - mine(wanted)).abs().max().item()]
    off += [
        (part.grad - mine(x.grad)).abs().max().item() for part, x in zip(parts, whole, strict=True)
    ]
    return max(off), sent / (parts[1].nbytes + parts[2].nbytes)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("dtype,allowed", [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_equals_full_attention(run, dtype, allowed, balanced):
    for off, sent in run(ring_beside_whole, dtype, balanced):
        assert off < allowed
        assert sent == 3 + 3 + 4  # keys and values: p - 1, p - 1; their gradients come home: p


def errors_in_16_bits(dtype, balanced, T, autocast=False):
    """Relative errors of SDPA and of the ring against float64: output, gradients of q, k, v.

    The errors of all ranks' positions together, as norms.
    """
    random = torch.Generator().manual_seed(0)
    low = [torch.randn(2, 4, T, 16, generator=random).to(dtype) for _ in range(4)]

    def results(attention, q, k, v, grad):
        inputs = [x.detach().clone().requires_grad_() for x in (q, k, v)]
        out = attention(*inputs)
        out.backward(grad)
        assert out.dtype == grad.dtype
        return [out.detach(), *(x.grad for x in inputs)]

    def sdpa(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def ring(q, k, v):
        if not autocast:
            return ring_attention(q, k, v, balanced=balanced)
        with torch.autocast("cpu", dtype):
            return ring_attention(q.float(), k.float(), v.float(), balanced=balanced)

    def mine(x):
        return split_sequence(x, dim=2, balanced=balanced)

    exact = [mine(x) for x in results(sdpa, *(x.double() for x in low))]
    found = []
    for outcome in ([mine(x) for x in results(sdpa, *low)], results(ring, *map(mine, low))):
        squares = [(x.double() - e).square().sum() for x, e in zip(outcome, exact, strict=True)]
        squares = torch.stack(squares)
        dist.all_reduce(squares)
        found.append(squares)
    return (found[1] / found[0]).sqrt().tolist()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_no_worse_than_sdpa(run, dtype, balanced, autocast):
    """Partial results are kept in float32. Kept in 16 bits, errors are 3 to 6 times SDPA's."""
    for ratios in run(errors_in_16_bits, dtype, balanced, 64, autocast):
        assert max(ratios) < 1.5, ratios


def test_inputs_that_are_not_alike(run):
    def refused():
        found = []
        q, k = torch.zeros(1, 2, 4, 8), torch.zeros(1, 1, 4, 8)
        for inputs in ((q, k, k), (q, q, q.double()), (q, q, q[..., :4])):
            try:
                ring_attention(*inputs)
            except ValueError as error:
                found.append("q, k and v must have one shape and dtype" in str(error))
        return found

    assert run(refused) == [[True] * 3] * 4


def test_a_world_of_one_and_groups_of_two(run):
    def in_groups():
        rank = dist.get_rank()
        pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
        singles = [dist.new_group([r]) for r in range(4)]
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, 1, 8, 4, dtype=torch.float64) for _ in range(3))
        wanted = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        off = []
        for group in (pairs[rank // 2], singles[rank]):
            parts = [split_sequence(x, group, dim=2) for x in (q, k, v)]
            mine = split_sequence(wanted, group, dim=2)
            off.append((ring_attention(*parts, group) - mine).abs().max().item())
        return max(off)

    assert max(run(in_groups)) < 1e-12


def flops_of_forward(balanced, T=48):
    q, k, v = (split_sequence(torch.ones(2, 3, T, 8), dim=2, balanced=balanced) for _ in "qkv")
    with FlopCounterMode(display=False) as counter:
        ring_attention(q, k, v, balanced=balanced)
    return counter.get_total_flops()


@pytest.mark.parametrize("balanced", [False, True])
def test_work_is_what_the_ranks_compute(run, balanced):
    """Two products for each pair of chunks, scores and values; a multiply-add counts twice."""
    one_block = 2 * 2 * (2 * 3) * (48 // 8) ** 2 * 8
    wanted = [one_block * blocks_of_work(rank, 4, balanced=balanced) for rank in range(4)]
    assert run(flops_of_forward, balanced) == wanted


def test_the_balanced_split_shares_work_equally():
    for size in (1, 2, 4, 7):
        plain = [blocks_of_work(rank, size, balanced=False) for rank in range(size)]
        fair = [blocks_of_work(rank, size, balanced=True) for rank in range(size)]
        assert fair == [2 * size + 1] * size
        assert plain == [4 * (rank + 1) for rank in range(size)]
        held = sorted(c for rank in range(size) for c in chunks_of(rank, size, balanced=True))
        assert held == list(range(2 * size))


def test_merging_is_exact_in_any_order():
    torch.manual_seed(0)
    q, k, v = torch.randn(4, 8), torch.randn(9, 8), torch.randn(9, 8)
    wanted, total = attend(q, k, v, causal=False)
    pieces = [attend(q, k[i : i + 3], v[i : i + 3], causal=False) for i in (0, 3, 6)]
    for order in ((0, 1, 2), (2, 0, 1)):
        out, lse = torch.zeros(4, 8), torch.full((4,), float("-inf"))
        for i in order:
            out, lse = merge(out, lse, *pieces[i])
        assert torch.allclose(out, wanted, atol=1e-6)
        assert torch.allclose(lse, total, atol=1e-6)


def test_sequences_that_do_not_divide(run):
    def refused():
        found = []
        for split in (
            lambda: split_sequence(torch.zeros(1, 12), balanced=True),
            lambda: split_sequence(torch.zeros(1, 6), balanced=False),
            lambda: ring_attention(*torch.zeros(3, 1, 1, 3, 2)),
        ):
            try:
                split()
            except ValueError as error:
                found.append(str(error))
        return found

    for messages in run(refused):
        assert "sequence length=12 cannot be cut into 8" in messages[0]
        assert "sequence length=6 cannot be cut into 4" in messages[1]
        assert "positions of a rank=3 cannot be cut into 2" in messages[2]


def test_a_step_as_one_rank_of_64():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=5, world_size=64, store=FakeStore())
    try:
        with FakeTensorMode():
            q, k, v = (torch.zeros(1, 2, 16, 8, requires_grad=True) for _ in range(3))
            ring_attention(q, k, v).sum().backward()
    finally:
        dist.destroy_process_group()
    assert q.grad.shape == q.shape


def float64_and_penalty():
    """The type and the error under autocast; what a graph of the gradient gives."""
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 16, 8, generator=random, dtype=torch.float64)
    parts = [split_sequence(x, dim=2).requires_grad_() for x in (q, k, v)]
    with torch.autocast("cpu", torch.bfloat16):
        out = ring_attention(*parts)
    wanted = split_sequence(F.scaled_dot_product_attention(q, k, v, is_causal=True), dim=2)
    loss = parallel_cross_entropy(parts[0].flatten(0, 2), torch.tensor([0] * 8))
    messages = []
    for result in (out.sum(), loss):
        try:
            torch.autograd.grad(result, parts[0], create_graph=True)
        except RuntimeError as error:
            messages.append(str(error))
    return out.dtype == torch.float64, (out - wanted).abs().max().item(), messages


def test_float64_stays_under_autocast_and_second_derivatives_are_refused(run):
    for kept, off, messages in run(float64_and_penalty):
        assert kept, off
        assert off < 1e-12
        names = [message.split(":")[0] for message in messages]
        through = "create_graph=True through "
        assert names == [through + "ring_attention()", through + "parallel_cross_entropy()"]


def types_under_our_autocast():
    """The loss of a cut vocabulary, and attention's gradients beside those under torch's."""
    grads = []
    for autocast in (Autocast, torch.autocast):
        random = torch.Generator().manual_seed(0)
        parts = [torch.randn(1, 2, 4, 8, generator=random).requires_grad_() for _ in range(3)]
        with autocast("cpu", torch.bfloat16):
            out = ring_attention(*parts)
            loss = parallel_cross_entropy(out.flatten(0, 2), torch.tensor([0] * 8))
        loss.backward()
        grads.append(torch.stack([x.grad for x in parts]))
    return loss.dtype == torch.float32, torch.equal(*grads)


def test_our_autocast_is_torch_s_here(run):
    assert run(types_under_our_autocast) == [(True, True)] * 4
