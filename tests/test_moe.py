"""The MoE layer: grouped as by a loop, what is dropped, what balances, what it refuses."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlcourse.models.moe import (
    Experts,
    LoopedMoE,
    MoE,
    Router,
    balance_loss,
    capacity,
    combine,
    permute,
    z_loss,
)
from dlcourse.models.tiny import MoE as TinyMoE
from dlcourse.peers.grouped_experts import TorchExperts

C = 16


def layer(cls=MoE, seed=0, dtype=torch.float64, **options):
    """Weights large enough that experts differ and the router prefers some."""
    torch.manual_seed(seed)
    moe = cls(C, **{"num_experts": 6, "hidden": 24} | options).to(dtype)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_(std=0.3)
    return moe


def output_and_gradients(moe, x):
    x = x.clone().requires_grad_()
    y = moe(x)
    y.square().sum().backward()
    return [y, x.grad, *(p.grad for p in moe.parameters())]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("top_k", [1, 2, 6])
@pytest.mark.parametrize("tokens", [1, 3, 40])  # fewer copies than experts: some get nothing
def test_grouped_is_what_a_loop_with_masks_gives(top_k, shared, tokens):
    options = {"top_k": top_k, "shared": nn.Linear(C, C) if shared else None}
    grouped, looped = layer(**options), layer(LoopedMoE, **options)
    x = torch.randn(2, tokens, C, dtype=torch.float64)
    for a, b in zip(output_and_gradients(grouped, x), output_and_gradients(looped, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)  # sums in another order
    assert grouped.counts_E.sum() == 2 * tokens * top_k and grouped.num_dropped == 0
    assert torch.equal(grouped.counts_E, looped.counts_E)


class Made(TorchDispatchMode):
    """Counts the numbers in the results of all operators."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not func.is_view:
            self.numbers += result.numel()
        return result


def test_backward_makes_no_more_with_more_experts():
    """The gradient of one place in a tensor is as large as the tensor: 64 of them are 64 times.

    Allowed: each expert's gradients, their stack, and some tensors of rows.
    """
    for num_experts in (8, 64):
        moe = layer(num_experts=num_experts, top_k=2, hidden=256)
        loss = moe(torch.randn(64, C, dtype=torch.float64)).sum()
        with Made() as made:
            loss.backward()
        weights = sum(p.numel() for p in moe.experts.parameters())
        assert made.numbers < 2 * weights + 4 * 64 * 2 * 256


def test_gradients_are_those_of_small_differences():
    moe = layer(top_k=2)
    x = torch.randn(5, C, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(moe, (x,))


def test_torchs_grouped_product_gives_the_same():
    ours, torchs = (layer(dtype=torch.float32).experts for _ in range(2))
    assert isinstance(ours, Experts)
    torchs.__class__ = TorchExperts
    x_MC, counts = torch.randn(11, C), [3, 0, 4, 1, 0, 3]
    for a, b in zip(*([e(x_MC, counts), *e.parameters()] for e in (ours, torchs)), strict=True):
        torch.testing.assert_close(a, b)
    for experts in (ours, torchs):
        experts(x_MC, counts).square().sum().backward()
    for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_permute_sorts_by_expert_and_keeps_the_order_of_tokens():
    experts_NK = torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0]])
    copies_M, counts_E = permute(experts_NK, 4)
    assert copies_M.tolist() == [1, 4, 7, 3, 0, 2, 5, 6]
    assert counts_E.tolist() == [3, 1, 4, 0]


def test_beyond_its_capacity_an_expert_drops_the_later_tokens():
    experts_NK = torch.tensor([[2, 0], [2, 1], [0, 2], [2, 0]])
    copies_M, counts_E = permute(experts_NK, 4, limit=2)
    assert copies_M.tolist() == [1, 4, 3, 0, 2]  # the last token has lost both its copies
    assert counts_E.tolist() == [2, 1, 2, 0]
    y_NC = combine(torch.ones(5, 3), copies_M, torch.full((4, 2), 0.5))
    assert y_NC[:, 0].tolist() == [1.0, 1.0, 0.5, 0.0]


def test_capacity_is_the_even_share_times_the_factor_rounded_up():
    assert capacity(64, 8, 2, 1.0) == 16
    assert capacity(64, 8, 2, 1.25) == 20
    assert capacity(65, 8, 2, 1.0) == 17
    assert capacity(3, 8, 1, 0.5) == 1, "no expert is closed"


@pytest.mark.parametrize("shared", [False, True])
def test_what_is_dropped_is_counted_and_only_the_shared_expert_sees_it(shared):
    moe = layer(capacity_factor=0.5, shared=nn.Linear(C, C) if shared else None)
    x = torch.randn(40, C, dtype=torch.float64)
    y = moe(x)
    limit = capacity(40, 6, 2, 0.5)
    asked_E = moe.routing.counts()
    assert moe.counts_E.tolist() == asked_E.clamp(max=limit).tolist()
    assert moe.num_dropped == (asked_E - limit).clamp(min=0).sum() > 0
    copies_M, _ = permute(moe.routing.experts_NK, 6, limit)
    without = torch.tensor([n not in set((copies_M // 2).tolist()) for n in range(40)])
    assert without.any()
    wanted = moe.shared(x[without]) if shared else torch.zeros(int(without.sum()), C).double()
    torch.testing.assert_close(y[without], wanted)
    # With room for all, a limit changes nothing
    free = layer(capacity_factor=6.0, shared=nn.Linear(C, C) if shared else None)
    assert torch.equal(free(x), layer(shared=nn.Linear(C, C) if shared else None)(x))
    assert free.num_dropped == 0


def test_weights_of_a_token():
    x_NC = torch.randn(30, C)
    for top_k in (1, 2, 3):
        routing = layer(top_k=top_k, dtype=torch.float32).router(x_NC)
        scores_NE = routing.logits_NE.softmax(-1)
        assert torch.equal(routing.experts_NK, scores_NE.topk(top_k).indices)
        sums_N = routing.weights_NK.sum(1)
        if top_k == 1:
            assert torch.equal(routing.weights_NK[:, 0], scores_NE.amax(1))
        else:
            torch.testing.assert_close(sums_N, torch.ones(30))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_loss_of_the_text_reaches_the_router(top_k):
    """With one expert of weight 1 it would not: nothing would say which choice was better."""
    moe = layer(top_k=top_k)
    moe(torch.randn(20, C, dtype=torch.float64)).square().sum().backward()
    assert moe.router.weight.grad.abs().max() > 1e-3


# --- Balance ------------------------------------------------------------------------------------


def test_balance_loss_is_the_papers_formula():
    moe = layer()
    moe(torch.randn(50, C, dtype=torch.float64))
    routing, (E, K) = moe.routing, (6, 2)
    scores = routing.logits_NE.softmax(-1).tolist()
    wanted = 0.0
    for expert in range(E):
        asked = sum(row.count(expert) for row in routing.experts_NK.tolist()) / (50 * K)
        wanted += asked * sum(row[expert] for row in scores) / 50
    assert balance_loss(routing, routing.counts()).item() == pytest.approx(E * wanted)
    even = routing._replace(logits_NE=torch.zeros(50, E))
    assert balance_loss(even, torch.full((E,), 7)).item() == pytest.approx(1.0)


def test_z_loss_is_the_papers_formula():
    moe = layer()
    moe(torch.randn(4, C, dtype=torch.float64))
    rows = moe.routing.logits_NE.tolist()
    wanted = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in rows) / 4
    assert z_loss(moe.routing).item() == pytest.approx(wanted)


def uneven_router() -> tuple[Router, torch.Tensor]:
    torch.manual_seed(0)
    router = Router(C, 8, 2)
    x_NC = torch.randn(512, C) + 0.5  # what all tokens share makes all prefer the same experts
    with torch.no_grad():
        router.weight.normal_(std=0.3)
    return router, x_NC


def busiest_over_even(router, x_NC) -> float:
    counts_E = router(x_NC).counts()
    return (counts_E.max() / counts_E.float().mean()).item()


def test_the_bias_moves_towards_balance_and_leaves_the_weights_alone():
    router, x_NC = uneven_router()
    before = router(x_NC)
    assert busiest_over_even(router, x_NC) > 1.8
    counts_E = before.counts()
    router.update_bias(counts_E, rate=0.01)
    assert torch.equal(router.bias_E.sign(), (counts_E.float().mean() - counts_E).sign())
    for _ in range(300):
        router.update_bias(router(x_NC).counts(), rate=1e-3)
    assert busiest_over_even(router, x_NC) < 1.1
    after = router(x_NC)
    assert torch.equal(after.logits_NE, before.logits_NE)
    scores_NK = after.logits_NE.softmax(-1).gather(1, after.experts_NK)
    torch.testing.assert_close(after.weights_NK, scores_NK / scores_NK.sum(1, keepdim=True))
    assert "bias_E" in router.state_dict() and "bias_E" not in dict(router.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_bias_moves_on_in_a_model_of_16_bits(dtype):
    """In bfloat16 a step of 0.001 from 0.5 is 0.5 again: balance would stop there."""
    layer = MoE(8, num_experts=4).to(dtype)
    for _ in range(1000):
        layer.router.update_bias(torch.tensor([9, 1, 1, 1]))
    layer.to("cpu").requires_grad_(True)
    wanted = torch.tensor([-1.0, 1, 1, 1])
    torch.testing.assert_close(layer.router.bias_E.float(), wanted, rtol=1e-4, atol=0)
    assert layer.router.weight.dtype == dtype
    assert layer(torch.randn(3, 8, dtype=dtype)).dtype == dtype
    copied = copy.deepcopy(layer).half()
    assert torch.equal(copied.router.bias_E.float(), layer.router.bias_E.float())


def test_the_balance_loss_alone_moves_towards_balance():
    router, x_NC = uneven_router()
    optimizer = torch.optim.Adam(router.parameters(), lr=1e-2)
    before = busiest_over_even(router, x_NC)
    for _ in range(100):
        routing = router(x_NC)
        optimizer.zero_grad()
        balance_loss(routing, routing.counts()).backward()
        optimizer.step()
    assert before > 1.8 and busiest_over_even(router, x_NC) < 1.3


# --- Precision, and what is refused -------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 2])
def test_under_autocast_the_router_stays_in_float32(top_k):
    moe, x = layer(dtype=torch.float32, top_k=top_k), torch.randn(3, 20, C)
    whole = moe(x)
    routing = moe.routing
    with torch.autocast("cpu", torch.bfloat16):
        y = moe(x)
        y.square().sum().backward()
    assert y.dtype == torch.bfloat16, "as nn.Linear does"
    for name in routing._fields:
        assert torch.equal(getattr(moe.routing, name), getattr(routing, name)), name
    # bfloat16 has 8 bits: 2 ** -8 of each product, of sums that are larger than the result
    torch.testing.assert_close(y.float(), whole, rtol=0.02, atol=0.02 * whole.abs().max().item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in moe.parameters())


def test_the_smallest_moe_works_under_autocast():
    torch.manual_seed(0)
    moe, x_NC = TinyMoE(C, 4), torch.randn(40, C)
    whole = moe(x_NC)
    with torch.autocast("cpu", torch.bfloat16):
        y_NC = moe(x_NC)
        y_NC.float().square().sum().backward()
    torch.testing.assert_close(y_NC.float(), whole, rtol=0.02, atol=0.01)
    assert moe.router.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"top_k": 7}, "top_k=7 is not allowed with num_experts=6: give 1 to 6"),
        ({"top_k": 0}, "top_k=0 is not allowed"),
        ({"top_k": 1.0}, "top_k=1.0 is not allowed"),
        ({"num_experts": 0}, "num_experts=0 is not allowed"),
        ({"num_experts": True}, "num_experts=True is not allowed"),
        ({"hidden": 0}, "hidden=0 is not allowed"),
        ({"hidden": 8.0}, "hidden=8.0 is not allowed"),
        ({"capacity_factor": 0}, "capacity_factor=0 is not allowed: give a number above 0"),
        ({"capacity_factor": -1.0}, "capacity_factor=-1.0 is not allowed"),
        ({"capacity_factor": math.nan}, "capacity_factor=nan is not allowed"),
        ({"capacity_factor": math.inf}, "capacity_factor=inf is not allowed"),
        ({"capacity_factor": "1"}, "capacity_factor='1' is not allowed"),
    ],
)
def test_what_no_layer_can_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        layer(**options)


def test_the_loop_refuses_a_capacity_that_it_would_ignore():
    with pytest.raises(ValueError, match=r"capacity_factor=1\.0 needs places to be counted"):
        layer(LoopedMoE, capacity_factor=1.0)


def test_a_layer_is_copied_after_a_forward_and_has_losses_without_tokens():
    """deepcopy met the graph that the last forward had left; both losses were NaN."""
    moe = MoE(8, num_experts=4)
    moe(torch.randn(3, 8))
    other = copy.deepcopy(moe)
    assert torch.equal(other.routing.experts_NK, moe.routing.experts_NK)
    moe(torch.randn(0, 8))
    losses = balance_loss(moe.routing, moe.routing.counts()), z_loss(moe.routing)
    assert [loss.item() for loss in losses] == [0.0, 0.0]
    sum(losses).backward()


@pytest.mark.parametrize("cls", [MoE, LoopedMoE])
def test_a_token_without_rows_is_refused(cls):
    with pytest.raises(ValueError, match=r"x has shape \(\d+,\): give rows of tokens"):
        layer(cls)(torch.randn(C))


@pytest.mark.parametrize("cls", [MoE, LoopedMoE])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_named(value, cls):
    moe = layer(cls, dtype=torch.float32, name="layer 3")
    x = torch.randn(4, 10, C)
    x[1, 2:7] = value
    with pytest.raises(
        FloatingPointError, match=r"router of layer 3 .* 5 of 40 tokens \(12.5%\): lower"
    ):
        moe(x)
