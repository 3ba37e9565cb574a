"""The one loop with tensor parallelism: recipes on a mesh of data x tensor, against one process.

In float64, so that sums in another order differ by 1e-15 and not by 1e-7: after five steps of AdamW
the parameters agree to 1e-9.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from dlcourse import Ranks
from dlcourse.formulas.recipe import Recipe
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.mesh import make_mesh
from dlcourse.parallel.tensor import tensor_parallel
from dlcourse.training.memory_anatomy import Training

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SIZES = dict(block_size=16, n_layer=2, n_head=2, n_embd=32, tie_embeddings=True)
STEPS = 5


def batches():
    torch.manual_seed(3)
    return [torch.randint(256, (2, 8, 16)) for _ in range(STEPS)]


def apart(recipe):
    """Largest difference between this rank's parameters and its parts of one process's."""
    alone = Training(GPT(GPTConfig(**SIZES)).double(), Recipe())
    alone.world_size = 1  # every rank for itself
    mesh = make_mesh(data=2, tensor=2)
    gpt = tensor_parallel(GPT(GPTConfig(**SIZES)).double(), mesh["tensor"])
    ours = Training(gpt, recipe, process_group=mesh.get_group("data"))
    for tokens, targets in batches():
        alone.step(tokens, targets)
        copy = mesh.get_local_rank("data")
        ours.step(tokens.chunk(2)[copy], targets.chunk(2)[copy])
    whole = dict(alone.model.named_parameters())
    module = ours.model.module if recipe.stage else ours.model
    worst = torch.zeros((), dtype=torch.float64)
    with ours.model.gathered() if recipe.stage == 3 else nullcontext():
        for name, mine in module.named_parameters():
            # a block inside a checkpoint is its first and only layer
            full = whole[name.replace(".layers.0.", ".")]
            for dim in range(full.dim()):
                if mine.shape[dim] != full.shape[dim]:
                    full = full.chunk(2, dim)[mesh.get_local_rank("tensor")]
            worst = torch.maximum(worst, (mine - full).abs().max())
    return worst.item()


@pytest.fixture(scope="module")
def four():
    with Ranks(4, default=False) as pool:
        yield pool


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_recipes_on_a_mesh_equal_one_process(four, stage):
    recipe = Recipe(accumulate=2, checkpoint=True, stage=stage)
    assert max(four.run(apart, recipe)) < 1e-9


def uneven_parts(stage, frozen, seed_of_rank):
    """Largest difference of parameters from one process, in float64, after three steps.

    Ranks may start differently, some parameters be frozen, and targets be ignored unevenly.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    models = [GPT(GPTConfig(**SIZES), seed=seed).double() for seed in (0, rank * seed_of_rank)]
    for model in models:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
    alone = Training(models[0], Recipe(accumulate=4))
    alone.world_size = 1  # every rank for itself
    ours = Training(models[1], Recipe(accumulate=2, stage=stage))
    for tokens, targets in batches()[:3]:
        targets = targets.clone()
        targets[0, :13] = targets[1] = -100
        targets[2:4] = -100  # a micro-batch without any
        loss = alone.step(tokens, targets)
        part = ours.step(tokens.chunk(size)[rank], targets.chunk(size)[rank])
        dist.all_reduce(part)
        assert abs(part / size - loss) < 1e-5  # the loss is added up in float32
    return (alone.weights() - ours.weights()).abs().max().item()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_target_counts_the_same(four, stage):
    """Frozen parameters have no gradient to average, and replicas start from rank 0's."""
    for frozen in ((), ("token_embedding", "head")):
        assert max(four.run(uneven_parts, stage, frozen, 1)) < 1e-9


def refused_and_ignored(stage):
    """What is refused although this rank's own batch may be fine; the loss without any target."""
    sizes, found = SIZES | dict(tie_embeddings=False), []
    training = Training(GPT(GPTConfig(**sizes)), Recipe(accumulate=2, stage=stage), lr=0.0)
    tokens, targets = batches()[0]
    wrong = tokens.clone()
    wrong[0, 0] = 256
    for batch in ((wrong, targets), (tokens, wrong), (tokens[:3], targets[:3])):
        try:
            training.step(*(batch if dist.get_rank() == 1 else (tokens, targets)))
        except ValueError as error:
            found.append(str(error))
    loss = training.step(tokens, torch.full_like(targets, -100))
    gradients = [p.grad for p in training.parameters if p.grad is not None]
    return found, loss.isnan().item(), all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_wrong_batch_is_refused_in_every_rank(four, stage):
    wanted = ["tokens has 256", "targets has 256", "a batch of 3 sequences does not divide"]
    for rank, (messages, is_nan, no_gradient) in enumerate(four.run(refused_and_ignored, stage)):
        for message, words in zip(messages, wanted, strict=True):
            assert words in message if rank == 1 else "1 of 4 ranks cannot take" in message
        assert is_nan and no_gradient  # as one process has it, where no target counts


def test_models_that_cannot_be_trained_are_refused():
    frozen = GPT(GPTConfig(**SIZES)).requires_grad_(False)
    with pytest.raises(ValueError, match="gpt has no trainable parameter"):
        Training(frozen, Recipe())
    gpt = GPT(GPTConfig(**SIZES))
    gpt.token_embedding.max_norm = 1.0
    with pytest.raises(ValueError, match=r"embedding\.max_norm=1\.0"):
        Training(gpt, Recipe())


@pytest.mark.parametrize("precision", ["float32", "autocast", "master", "bfloat16"])
def test_frozen_parameters_stay_as_they_are(precision):
    gpt = GPT(GPTConfig(**SIZES | dict(tie_embeddings=False)))
    gpt.token_embedding.requires_grad_(False)
    training = Training(gpt, Recipe(precision=precision))
    before = [p.clone() for p in (gpt.token_embedding.weight, gpt.head.weight)]
    for tokens, targets in batches()[:2]:
        training.step(tokens, targets)
    assert torch.equal(gpt.token_embedding.weight, before[0])
    assert not torch.equal(gpt.head.weight, before[1])
