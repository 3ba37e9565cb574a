"""Composed parallelisms must be the training of one process.

In float64 the only difference is the order of sums, which moves the last digits: losses of five
steps agree to 1e-10, parameters after five AdamW steps to 1e-9.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest

from dlcourse import Ranks
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.mesh import MeshParallel, make_mesh, train
from dlcourse.parallel.shards import check_mesh
from dlcourse.training import loop
from dlcourse.training.corpus import Corpus

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = dict(block_size=16, n_layer=2, n_head=2, n_embd=32)
JOB = dict(steps=5, batch_size=8, block=16)


def new_model(seed: int, tie: bool = False) -> GPT:
    model = GPT(GPTConfig(**SMALL, tie_embeddings=tie), seed=seed).double()
    model.position_embedding.weight.requires_grad_(False)  # a frozen parameter
    return model


def difference(sides: dict[str, int], zero: bool, tie: bool) -> tuple[float, float]:
    """Largest difference from one process, in losses and in this rank's parameters."""
    import torch.distributed as dist

    corpus, alone = Corpus(limit=100_000), new_model(0, tie)
    expected = loop.train(alone, corpus, **JOB)
    mesh = make_mesh(**sides)
    model = MeshParallel(new_model(dist.get_rank(), tie), mesh, num_micro_batches=2, zero=zero)
    losses = train(model, corpus, **JOB)
    whole, worst = dict(alone.named_parameters(remove_duplicate=False)), 0.0
    for name, mine in model.layers.named_parameters():
        full = whole[name[name.index("blocks" if "blocks" in name else name.split(".")[-2]) :]]
        for dim in range(full.dim()):
            if mine.shape[dim] != full.shape[dim]:
                full = full.chunk(sides["tensor"], dim)[mesh.get_local_rank("tensor")]
        worst = max(worst, (mine - full).abs().max().item())
    return max(abs(a - b) for a, b in zip(losses, expected, strict=True)), worst


@pytest.fixture(scope="module")
def four():
    with Ranks(4, default=False) as pool:
        yield pool


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "sides",
    [dict(data=2, tensor=2), dict(data=2, pipeline=2), dict(pipeline=2, tensor=2), dict(data=4)],
    ids=str,
)
def test_two_sides_equal_one_process(four, sides, zero):
    for losses, parameters in four.run(difference, sides, zero, tie=False):
        assert losses < 1e-10 and parameters < 1e-9


def test_three_sides_equal_one_process():
    sides = dict(data=2, pipeline=2, tensor=2)
    with Ranks(8, default=False) as pool:
        for zero, tie in ((True, False), (False, True)):
            for losses, parameters in pool.run(difference, sides, zero, tie):
                assert losses < 1e-10 and parameters < 1e-9


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


def test_a_batch_that_does_not_divide_is_refused(four):
    def refused() -> str:
        model = MeshParallel(new_model(0), make_mesh(data=2, tensor=2), num_micro_batches=3)
        try:
            train(model, Corpus(limit=100_000), **JOB)
        except ValueError as error:
            return str(error)
        return ""

    assert all("batch_size=8" in text and "accumulate=3" in text for text in four.run(refused))
