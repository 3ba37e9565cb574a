"""Experts divided over real ranks must be the MoE of one process, on all ranks' tokens.

Tolerance. Routers compute in float32 whatever the model's type is, so in float64 the weights of the
experts, and the gradients that pass through them, have seven digits. Sums over ranks round them
otherwise than one sum does: 1e-7 is asked for, of gradients up to 0.1 and parameters moved by five
steps of AdamW.
"""

from __future__ import annotations

import copy
import sys
from contextlib import nullcontext
from functools import partial

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dlcourse import RankError, Ranks
from dlcourse.collectives import direct
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.moe import MoE, balance_loss, z_loss
from dlcourse.models.targets import weighted
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
from dlcourse.parallel.mesh import MeshParallel, make_mesh
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero3 import ZeRO3

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

TOLERANCE = 1e-7
LR = 1e-3
C = 32


@pytest.fixture(scope="module")
def run():
    with Ranks(4, default=False) as pool:
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
            extra = balance_loss(moe.routing, moe.counts_E) + 0.1 * z_loss(moe.routing)
            loss = loss + 0.1 * extra * share
    return loss


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
    random, accumulate = torch.Generator().manual_seed(1), 2 if case == "accumulate" else 1
    losses = gradients = 0.0
    for _ in range(steps):
        text = torch.randint(256, (8 * accumulate, 17), generator=random)
        for optimizer in optimizers:
            optimizer.zero_grad()
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


def test_any_exchange_with_the_interface_of_all_to_all(run):
    assert_equal(run(beside_one_process, 1, 4, exchange=direct.all_to_all, steps=2))
