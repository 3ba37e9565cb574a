"""Experts beside ZeRO, a pipeline and tensor parallelism must be the training of one process.

In float64 the only difference is the order of sums: losses of three steps agree to 1e-10,
parameters after three AdamW steps to 1e-9.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from dlcourse import RankError, Ranks
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.models.moe import MoE
from dlcourse.parallel.expert_groups import make_expert_mesh
from dlcourse.parallel.expert_mesh import ExpertMeshParallel, make_full_mesh
from dlcourse.parallel.expert_zero import expert_zero
from dlcourse.parallel.zero_checkpoint import save_checkpoint

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

C, STEPS, LR = 32, 3, 1e-3


def moe_gpt(seed: int, *, tie: bool = False) -> GPT:
    """A GPT of two layers, whose MLPs are eight experts, two of them for a token."""
    sizes = dict(block_size=16, n_layer=2, n_head=2, n_embd=C, tie_embeddings=tie)
    gpt = GPT(GPTConfig(**sizes), seed=seed)
    random = torch.Generator().manual_seed(seed)
    for block in gpt.blocks:
        block.mlp = MoE(C, num_experts=8, top_k=2, hidden=C)
        with torch.no_grad():
            for parameter in block.mlp.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return gpt.double()


def part_of(name: str, whole: torch.Tensor, mine: torch.Tensor, mesh) -> torch.Tensor:
    """What of a parameter of one process this rank has."""
    if ".experts." in name:
        whole = whole.chunk(mesh["expert"].size())[mesh.get_local_rank("expert")]
    for dim in range(whole.dim()):
        if mine.shape[dim] != whole.shape[dim]:
            whole = whole.chunk(mesh["tensor"].size(), dim)[mesh.get_local_rank("tensor")]
    return whole


def apart(module, alone: GPT, mesh) -> float:
    """Largest difference between this rank's parameters and its parts of one process's."""
    whole, worst = dict(alone.named_parameters(remove_duplicate=False)), 0.0
    for name, mine in module.named_parameters():
        full = whole[name[name.index("blocks" if "blocks" in name else name.split(".")[-2]) :]]
        worst = max(worst, (mine - part_of(name, full, mine, mesh)).abs().max().item())
    return worst


def batches(mesh):
    """Of each step the whole batch, and this rank's part of it."""
    random = torch.Generator().manual_seed(1)
    place = mesh.get_local_rank("data") * mesh["expert"].size() + mesh.get_local_rank("expert")
    copies = mesh["data"].size() * mesh["expert"].size()
    for _ in range(STEPS):
        text = torch.randint(256, (32, 17), generator=random)
        yield text, text.chunk(copies)[place]


def one_process(alone: GPT, optimizer, text) -> torch.Tensor:
    optimizer.zero_grad()
    loss = alone(text[:, :-1], text[:, 1:])
    loss.backward()
    optimizer.step()
    return loss.detach()


def with_zero(stage: int, sides: dict[str, int], tie: bool) -> tuple[float, float, float]:
    """Largest difference of losses, parameters and norms; two micro-batches a step."""
    mesh = make_expert_mesh(**sides)
    alone = moe_gpt(0, tie=tie)
    model = expert_zero(moe_gpt(dist.get_rank(), tie=tie), mesh, stage=stage)
    optimizers = [torch.optim.AdamW(p, lr=LR) for p in (alone.parameters(), model.shards)]
    off = norms_off = 0.0
    for text, mine in batches(mesh):
        optimizers[1].zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part in mine.chunk(2):
            loss = model(part[:, :-1], part[:, 1:]) / 2
            loss.backward()
            total += loss.detach()
        model.sync_gradients()
        dist.all_reduce(total, group=model.process_group)
        wanted = one_process(alone, optimizers[0], text)
        if sides.get("tensor", 1) == 1:
            norm = torch.nn.utils.clip_grad_norm_(alone.parameters(), 1e9)
            norms_off = max(norms_off, (model.clip_grad_norm_(1e9) - norm).abs().item())
        optimizers[1].step()
        model.sync_parameters()
        off = max(off, (total / model.world_size - wanted).abs().item())
    with getattr(model, "gathered", nullcontext)():
        return off, apart(model.module, alone, mesh), norms_off


def with_a_pipeline(sides: dict[str, int], zero: bool, tie: bool) -> tuple[float, float]:
    """Largest difference of losses and parameters; ``step()`` twice, of four micro-batches each."""
    mesh = make_full_mesh(**sides)
    alone = moe_gpt(0, tie=tie)
    ours = moe_gpt(dist.get_rank(), tie=tie)
    model = ExpertMeshParallel(ours, mesh, num_micro_batches=4, zero=zero)
    optimizers = [torch.optim.AdamW(alone.parameters(), lr=LR), model.optimizer(LR)]
    off = 0.0
    for text, mine in batches(mesh):
        optimizers[1].zero_grad()
        loss = sum(model.step(half[:, :-1], half[:, 1:]) for half in mine.chunk(2)) / 2
        for parameter in model.parameters():  # both calls add to it
            if parameter.grad is not None:
                parameter.grad /= 2
        for shard in model.copies.shards if zero else ():
            shard.grad /= 2
        optimizers[1].step()
        model.sync_parameters()
        off = max(off, (loss - one_process(alone, optimizers[0], text)).abs().item())
    return off, apart(model.layers, alone, mesh)


@pytest.fixture(scope="module")
def four():
    with Ranks(4, default=False) as pool:
        yield pool


@pytest.fixture(scope="module")
def eight():
    with Ranks(8, default=False) as pool:
        yield pool


@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(
    "sides", [dict(data=2, expert=2), dict(expert=4), dict(expert=2, tensor=2)], ids=str
)
def test_zero_beside_experts_equals_one_process(four, stage, sides, tie):
    for losses, parameters, norms in four.run(with_zero, stage, sides, tie):
        assert losses < 1e-10 and parameters < 1e-9 and norms < 1e-10


@pytest.mark.parametrize("zero", [False, True], ids=["copies", "zero"])
@pytest.mark.parametrize(
    "sides",
    [dict(pipeline=2, expert=2, tensor=2), dict(data=2, pipeline=2, expert=2)],
    ids=str,
)
def test_a_pipeline_with_experts_equals_one_process(eight, sides, zero):
    for tie in (False, True):
        for losses, parameters in eight.run(with_a_pipeline, sides, zero, tie):
            assert losses < 1e-10 and parameters < 1e-9


def refused(what: str) -> object:
    mesh = make_expert_mesh(data=2, expert=2)
    if what == "stage":
        return expert_zero(moe_gpt(0), mesh, stage=4)
    model = expert_zero(moe_gpt(0), mesh, stage=3)
    if what == "checkpoint":
        return save_checkpoint(model, torch.optim.AdamW(model.shards), "unused")
    if what == "changed":
        with model.gathered():
            if dist.get_rank() == 3:  # an expert that ranks 1 and 3 have
                model.module.blocks[0].mlp.experts.up.data.zero_()
    if what == "state":  # of this rank's experts, and of all that is dense
        before = {name: x.clone() for name, x in model.state_dict().items() if torch.is_tensor(x)}
        model.load_state_dict(model.state_dict())
        return all(
            before[name].equal(x) for name, x in model.state_dict().items() if name in before
        )
    return None


REFUSALS = {
    "stage": "stage=4 of ZeRO: give 1, 2 or 3",
    "checkpoint": "a ZeRO3 with experts divided over ranks",
    "changed": "those of ranks [3] are not those of rank 0",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_in_every_rank(four, what):
    with pytest.raises(RankError) as caught:
        four.run(refused, what)
    failures = caught.value.failures
    assert len(failures) == 4
    assert all(REFUSALS[what] in failure["message"] for failure in failures.values()), failures


def test_a_state_of_stage_3_is_of_this_ranks_experts(four):
    assert all(four.run(refused, "state"))
