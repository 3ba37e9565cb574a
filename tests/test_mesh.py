"""Composed parallelisms must be the training of one process.

In float64 the only difference is the order of sums, which moves the last digits: losses of five
steps agree to 1e-10, parameters after five AdamW steps to 1e-9.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import cloudpickle
import pytest

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.formulas.mesh import mesh_bytes, stage_parameters
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.measure.sides import sent_by_side
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.clipping import clip_grad_norm_
from dlcourse.parallel.divisibility import check_mesh
from dlcourse.parallel.mesh import MeshParallel, make_mesh, train
from dlcourse.parallel.tensor import tensor_parallel
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero import train as zero_train
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.training import loop

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = dict(block_size=16, n_layer=2, n_head=2, n_embd=32)
JOB = dict(steps=5, batch_size=8, block=16)


FROZEN = ("position_embedding",)
A_WHOLE_STAGE = ("token_embedding", "position_embedding", "blocks.0")  # of two


def new_model(seed: int, tie: bool = False, frozen: tuple[str, ...] = FROZEN) -> GPT:
    model = GPT(GPTConfig(**SMALL, tie_embeddings=tie), seed=seed).double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    return model


def apart(model, alone: GPT, mesh) -> float:
    """Largest difference between this rank's parameters and its parts of one process's."""
    whole, worst = dict(alone.named_parameters(remove_duplicate=False)), 0.0
    for name, mine in model.named_parameters():
        full = whole[name[name.index("blocks" if "blocks" in name else name.split(".")[-2]) :]]
        for dim in range(full.dim()):
            if mine.shape[dim] != full.shape[dim]:
                full = full.chunk(mesh["tensor"].size(), dim)[mesh.get_local_rank("tensor")]
        worst = max(worst, (mine - full).abs().max().item())
    return worst


def difference(
    sides: dict[str, int], zero: bool, tie: bool, frozen: tuple[str, ...] = FROZEN
) -> tuple[float, float]:
    """Largest difference from one process, in losses and in this rank's parameters."""
    import torch.distributed as dist

    corpus, alone = Corpus(limit=100_000), new_model(0, tie, frozen)
    expected = loop.train(alone, corpus, **JOB)
    mesh = make_mesh(**sides)
    ours = new_model(dist.get_rank(), tie, frozen)
    model = MeshParallel(ours, mesh, num_micro_batches=2, zero=zero)
    losses = train(model, corpus, **JOB)
    off = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    return off, apart(model.layers, alone, mesh)


def tensor_and_zero(stage: type[ZeRO1], tie: bool, frozen: tuple[str, ...]) -> list[float]:
    """The same over all ranks, for tensor parallelism inside stage 2 or 3."""
    import torch
    import torch.distributed as dist

    corpus, alone = Corpus(limit=100_000), new_model(0, tie, frozen)
    expected = loop.train(alone, corpus, **JOB)
    mesh = make_mesh(data=2, tensor=2)
    ours = tensor_parallel(new_model(dist.get_rank(), tie, frozen), mesh["tensor"])
    model = stage(ours, process_group=mesh.get_group("data"))
    losses = zero_train(model, corpus, **JOB)
    off = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    with getattr(model, "gathered", nullcontext)():
        worst = torch.tensor([off, apart(model.module, alone, mesh)])
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return worst.tolist()


def clipped(sides: dict[str, int], tie: bool) -> tuple[float, float]:
    """Norm and gradients beside one process's, after one step of both."""
    import torch

    alone, mesh = new_model(0, tie), make_mesh(**sides)
    model = MeshParallel(new_model(0, tie), mesh, num_micro_batches=2)
    batch = Corpus(limit=100_000).batch(0, micro_batch=8, block=16)
    alone(*batch).backward()
    copies, mine = mesh["data"].size(), mesh.get_local_rank("data")
    model.step(*(half.chunk(copies)[mine] for half in batch))
    wanted = torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
    norm = clip_grad_norm_(model, 0.1)
    for each in (model.layers, alone):
        for parameter in each.parameters():  # compared as parameters are
            if parameter.grad is not None:
                parameter.data = parameter.grad
    return (norm - wanted).abs().item(), apart(model.layers, alone, mesh)


def zero_clips_a_stage() -> list[str]:
    """What both ways to clip say of ZeRO beside a pipeline."""
    model = MeshParallel(
        new_model(0), make_mesh(data=2, pipeline=2), num_micro_batches=2, zero=True
    )
    said = []
    for clip in (model.copies.clip_grad_norm_, lambda norm: clip_grad_norm_(model, norm)):
        try:
            clip(0.1)
        except ValueError as error:
            said.append(str(error))
    return said


@pytest.fixture(scope="module")
def four():
    with Ranks(4, default=False) as pool:
        yield pool


@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("sides", [dict(data=2, pipeline=2), dict(pipeline=2, tensor=2)], ids=str)
def test_clips_by_the_norm_of_one_process(four, sides, tie):
    for norm, gradients in four.run(clipped, sides, tie):
        assert max(norm, gradients) < 1e-12


def test_zero_beside_a_pipeline_does_not_clip_a_stage_alone(four):
    for stage, whole in four.run(zero_clips_a_stage):
        assert "other parts of its gradient" in stage
        assert "in shards" in whole


@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("zero", [False, True], ids=["copies", "zero"])
@pytest.mark.parametrize(
    "sides",
    [dict(data=2, tensor=2), dict(data=2, pipeline=2), dict(pipeline=2, tensor=2), dict(data=4)],
    ids=str,
)
def test_two_sides_equal_one_process(four, sides, zero, tie):
    for losses, parameters in four.run(difference, sides, zero, tie):
        assert losses < 1e-10 and parameters < 1e-9


def uneven(sides: dict[str, int]) -> float:
    """Largest difference of gradients where copies and micro-batches have different targets."""
    import torch.distributed as dist

    mesh = make_mesh(**sides)
    tokens, targets = Corpus(limit=9999).batch(0, micro_batch=8, block=16)
    targets[0, :13] = targets[1] = targets[2] = targets[3, 3:] = -100  # 2 without any, of 4 pairs
    alone = new_model(0)
    wanted = alone(tokens, targets)
    wanted.backward()
    model = MeshParallel(new_model(dist.get_rank()), mesh, num_micro_batches=2)
    copy, copies = mesh.get_local_rank("data"), mesh["data"].size()
    loss = model.step(tokens.chunk(copies)[copy], targets.chunk(copies)[copy])
    whole, worst = dict(alone.named_parameters()), abs(loss - wanted).item()
    for name, mine in model.layers.named_parameters():
        full = whole[name[name.index("blocks" if "blocks" in name else name.split(".")[-2]) :]]
        if mine.shape == full.shape and full.grad is not None:
            worst = max(worst, (mine.grad - full.grad).abs().max().item())
    return worst


@pytest.mark.parametrize("sides", [dict(data=2, tensor=2), dict(data=2, pipeline=2)], ids=str)
def test_every_target_counts_the_same(four, sides):
    assert max(four.run(uneven, sides)) < 1e-12


def step_twice(sides: dict[str, int], zero: bool) -> float:
    """How far the gradients of two calls are from twice those of one, which one process adds."""
    mesh = make_mesh(**sides)
    model = MeshParallel(new_model(0), mesh, num_micro_batches=2, zero=zero)
    (mine,) = model.optimizer().param_groups
    batch, found = Corpus(limit=9999).batch(0, micro_batch=4, block=16), []
    for _ in range(2):
        model.step(*batch)
        found.append([p.grad.clone() for p in mine["params"] if p.grad is not None])
    return max((twice - 2 * once).abs().max().item() for once, twice in zip(*found, strict=True))


@pytest.mark.parametrize("zero", [False, True], ids=["copies", "zero"])
def test_gradients_add_up_over_calls(four, zero):
    for sides in (dict(data=4), dict(data=2, pipeline=2)):
        assert max(four.run(step_twice, sides, zero)) < 1e-12


def one_wrong_batch(sides: dict[str, int]) -> list[str]:
    """Only the first copy's batch is wrong; all ranks must refuse it, then train on."""
    mesh, found = make_mesh(**sides), []
    model = MeshParallel(new_model(0), mesh, num_micro_batches=2)
    tokens, targets = Corpus(limit=9999).batch(0, micro_batch=4, block=16)
    wrong = tokens.clone()
    wrong[0, 0] = 256
    is_first = mesh.get_local_rank("data") == 0
    for batch in ((wrong, targets), (tokens, wrong), (tokens[:3], targets[:3])):
        try:
            model.step(*(batch if is_first else (tokens, targets)))
        except ValueError as error:
            found.append(str(error))
    model.step(tokens, targets)
    return found


def test_a_wrong_batch_in_one_copy_is_refused_in_every_rank(four):
    for sides in (dict(data=2, tensor=2), dict(data=2, pipeline=2)):
        results = four.run(one_wrong_batch, sides)
        wanted = ["tokens has 256", "targets has 256", "a batch of 3 sequences does not divide"]
        for messages in results[:2]:
            for message, words in zip(messages, wanted, strict=True):
                assert words in message
        for messages in results[2:]:
            assert len(messages) == 3
            assert all("2 of 4 ranks cannot take their batch" in text for text in messages)


def test_three_sides_equal_one_process():
    sides = dict(data=2, pipeline=2, tensor=2)
    with Ranks(8, default=False) as pool:
        for zero, tie in ((True, False), (False, True), (True, True)):
            for losses, parameters in pool.run(difference, sides, zero, tie):
                assert losses < 1e-10 and parameters < 1e-9


@pytest.mark.parametrize("zero", [False, True], ids=["copies", "zero"])
def test_a_frozen_stage_equals_one_process(four, zero):
    sides = dict(data=2, pipeline=2)
    for losses, parameters in four.run(difference, sides, zero, False, A_WHOLE_STAGE):
        assert losses < 1e-10 and parameters < 1e-9


@pytest.mark.parametrize("stage", [ZeRO2, ZeRO3])
@pytest.mark.parametrize(
    ("tie", "frozen"),
    [(False, FROZEN), (True, FROZEN), (False, A_WHOLE_STAGE), (True, ("head", "token_embedding"))],
    ids=["", "tied", "frozen", "tied-and-frozen"],
)
def test_tensor_parallel_in_zero_equals_one_process(four, stage, tie, frozen):
    for losses, parameters in four.run(tensor_and_zero, stage, tie, frozen):
        assert losses < 1e-10 and parameters < 1e-9


SIZES = GPTConfig(block_size=16, n_layer=4, n_head=2, n_embd=32)
BATCH = dict(micro_batch=2, micro_batches=4, block=16)


def holds_and_sends(sides: dict[str, int]) -> tuple[dict[str, float], int, dict[str, int]]:
    """Bytes by side of one step, parameters, and where this rank is."""
    import torch.distributed as dist

    from dlcourse.measure.recorder import Recorder

    mesh = make_mesh(**sides)
    model = MeshParallel(GPT(SIZES), mesh, num_micro_batches=4)
    batch = Corpus(limit=9999).batch(0, micro_batch=8, block=16)
    with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
        model.step(*batch)
    groups = {side: mesh.get_group(side).group_name for side in mesh.mesh_dim_names}
    where = {side: mesh.get_local_rank(side) for side in groups}
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return sent_by_side(recorder.record["comm"], groups), numbers, where


def test_a_rank_holds_and_sends_what_the_formulas_say(four):
    for sides in (dict(data=2, pipeline=2), dict(pipeline=2, tensor=2), dict(pipeline=4)):
        every = {"data": 1, "pipeline": 1, "tensor": 1} | sides
        for sent, numbers, where in four.run(holds_and_sends, sides):
            stage = where["pipeline"]
            expected = mesh_bytes(SIZES, **every, **BATCH, stage=stage)
            if every["pipeline"] == 4:  # targets are counted over all ranks: here the pipeline's
                expected["pipeline"] += wire_bytes("all_reduce", 16, 4)
            assert sent == expected
            one = dict(pipeline=every["pipeline"], tensor=every["tensor"], stage=stage)
            assert numbers == stage_parameters(SIZES, **one)


def test_formulas_of_a_mesh_refuse_what_is_none():
    with pytest.raises(ValueError, match="pipeline=3 does not divide the 4 layers"):
        stage_parameters(SIZES, pipeline=3, tensor=1)
    with pytest.raises(ValueError, match="stage=2: there are stages 0 to 1"):
        stage_parameters(SIZES, pipeline=2, tensor=1, stage=2)
    with pytest.raises(ValueError, match="tensor=3 does not divide the width 32"):
        stage_parameters(SIZES, pipeline=2, tensor=3)
    with pytest.raises(ValueError, match="pipeline=1: give 2 or more"):
        mesh_bytes(SIZES, data=1, pipeline=1, tensor=1, **BATCH)


def test_ranks_of_one_tensor_group_are_neighbours(four):
    def neighbours() -> list[int]:
        import torch.distributed as dist

        return dist.get_process_group_ranks(make_mesh(data=2, tensor=2).get_group("tensor"))

    assert four.run(neighbours) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_mesh_that_does_not_multiply_out_is_refused():
    with pytest.raises(ValueError, match="2 x 1 x 3 is 6 ranks, and there are 4"):
        check_mesh(data=2, pipeline=1, tensor=3, world_size=4)
    with pytest.raises(ValueError, match="tensor=0"):
        check_mesh(data=4, pipeline=1, tensor=0, world_size=4)


def test_a_frozen_model_is_refused_in_every_rank(four):
    def refused() -> str:
        try:
            MeshParallel(
                new_model(0, frozen=("",)),
                make_mesh(data=2, pipeline=2),
                num_micro_batches=2,
                zero=True,
            )
        except ValueError as error:
            return str(error)
        return ""

    assert all("no trainable parameter" in text for text in four.run(refused))


def test_a_batch_that_does_not_divide_is_refused(four):
    def refused() -> str:
        model = MeshParallel(new_model(0), make_mesh(data=2, tensor=2), num_micro_batches=3)
        try:
            train(model, Corpus(limit=100_000), **JOB)
        except ValueError as error:
            return str(error)
        return ""

    assert all("batch_size=8" in text and "accumulate=3" in text for text in four.run(refused))
