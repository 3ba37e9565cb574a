"""What a ZeRO checkpoint gives back is what was saved, whatever the model did before and after.

Numbers that are only copied are compared for equality. Training goes on bit for bit, since the same
ranks add up in the same order.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dlcourse import Ranks
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.parallel.zero_checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

SMALL = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "master": MasterAdamW,
    "momentum": lambda shards: torch.optim.SGD(shards, lr=1e-2, momentum=0.9),
}


@pytest.fixture(scope="module")
def two():
    with Ranks(2, default=False) as pool:
        yield pool.run


def new(how, stage=ZeRO1):
    model = stage(GPT(SMALL), dtype=torch.bfloat16 if how == "master" else None)
    return model, OPTIMIZERS[how](model.shards)


def step(model, optimizer, number):
    seed = 2 * number + dist.get_rank()
    x = torch.randint(0, 256, (2, 16), generator=torch.Generator().manual_seed(seed))
    model(x, x).backward()
    model.sync_gradients()
    optimizer.step()
    model.sync_parameters()


def numbers(model, optimizer):
    """All that a rank has: shards, and their state."""
    found = []
    for shard in model.shards:
        found.append(shard.detach().clone())
        state = optimizer.state.get(shard, {})
        found += [torch.as_tensor(state[key]).clone() for key in sorted(state)]
    return found


def same(a, b):
    return len(a) == len(b) and all(
        x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True)
    )


def save_load_save(how, stage, path):
    """A checkpoint is loaded and saved to the same place: in memory and there it stays the same."""
    model, optimizer = new(how, stage)
    step(model, optimizer, 0)
    save_checkpoint(model, optimizer, path)
    want, found = numbers(model, optimizer), []
    for _ in range(2):
        model, optimizer = new(how, stage)
        load_checkpoint(model, optimizer, path)
        found.append(same(numbers(model, optimizer), want))
        save_checkpoint(model, optimizer, path)
        found.append(same(numbers(model, optimizer), want))
    return found


@pytest.mark.parametrize("how", OPTIMIZERS)
@pytest.mark.parametrize("stage", [ZeRO1, ZeRO3])
def test_a_checkpoint_may_be_saved_where_it_was_loaded_from(two, tmp_path, how, stage):
    assert two(save_load_save, how, stage, tmp_path) == [[True] * 4] * 2
    assert sorted(f.name for f in tmp_path.iterdir()) == ["manifest.json", "rank0.pt", "rank1.pt"]


def with_nothing(stage, path):
    """A model that has parameters of no elements, saved and loaded."""

    def build(seed):
        torch.manual_seed(seed)
        model = nn.Linear(3, 3)
        model.nothing = nn.Parameter(torch.empty(0, 4))
        model.frozen = nn.Parameter(torch.empty(0), requires_grad=False)
        wrapped = stage(model)
        return wrapped, torch.optim.AdamW(wrapped.shards)

    model, optimizer = build(0)
    model(torch.ones(2, 3)).sum().backward()
    model.sync_gradients()
    optimizer.step()
    save_checkpoint(model, optimizer, path)
    fresh = build(1)
    load_checkpoint(*fresh, path)
    return same(numbers(*fresh), numbers(model, optimizer))


@pytest.mark.parametrize("stage", [ZeRO1, ZeRO2, ZeRO3])
def test_parameters_without_elements(two, tmp_path, stage):
    assert two(with_nothing, stage, tmp_path) == [True] * 2


def back_to_the_beginning(how, path):
    """Saved before the first step, loaded after three: the next step is the first one again."""
    model, optimizer = new(how)
    save_checkpoint(model, optimizer, path)
    for number in range(3):
        step(model, optimizer, number)
    load_checkpoint(model, optimizer, path)
    step(model, optimizer, 7)
    fresh, other = new(how)
    step(fresh, other, 7)
    return same(numbers(model, optimizer), numbers(fresh, other))


@pytest.mark.parametrize("how", OPTIMIZERS)
def test_a_checkpoint_without_state_leaves_none(two, tmp_path, how):
    assert two(back_to_the_beginning, how, tmp_path) == [True] * 2


def through_buffers(path):
    """BatchNorm's averages of rank 0 after a step, and what is loaded into a new model."""

    def build(features=4):
        torch.manual_seed(0)
        return ZeRO1(nn.Sequential(nn.Linear(3, features), nn.BatchNorm1d(features)))

    model = build()
    optimizer = torch.optim.SGD(model.shards)
    model(torch.randn(8, 3)).sum().backward()
    model.sync_gradients()
    save_checkpoint(model, optimizer, path)
    fresh = build()
    load_checkpoint(fresh, torch.optim.SGD(fresh.shards), path)
    plain = ZeRO1(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    try:
        load_checkpoint(plain, torch.optim.SGD(plain.shards), path)
    except ValueError as error:
        said = str(error)
    pairs = zip(model.module.buffers(), fresh.module.buffers(), strict=True)
    return [torch.equal(a, b) for a, b in pairs], said


def test_buffers_are_saved_as_well(two, tmp_path):
    equal, said = two(through_buffers, tmp_path)[0]
    assert equal == [True] * 3
    assert "its buffers are 1.running_mean (4,), " in said and "this model's none" in said


def refusals(path):
    model, optimizer = new("adamw")
    step(model, optimizer, 0)
    said = []

    def refused(function, *args):
        before = numbers(model, optimizer)
        try:
            function(*args)
        except ValueError as error:
            said.append(str(error))
        assert same(numbers(model, optimizer), before)

    of_module = torch.optim.AdamW(model.module.parameters())
    refused(save_checkpoint, model, of_module, path)
    save_checkpoint(model, optimizer, path)
    refused(load_checkpoint, model, of_module, path)
    refused(load_checkpoint, model, MasterAdamW(model.shards), path)
    return said


def test_an_optimizer_that_does_not_belong_to_the_checkpoint(two, tmp_path):
    for said in two(refusals, tmp_path):
        assert len(said) == 3
        assert said[0] == said[1] and "3 of 3 tensors of model.shards not among" in said[0]
        assert "has the state of AdamW, and optimizer is MasterAdamW" in said[2]


def disk_full(path):
    model, optimizer = new("adamw")
    save_checkpoint(model, optimizer, path)
    works = torch.save

    def fails(rows, file):
        file.write_bytes(b"half of it")
        raise OSError("No space left on device")

    torch.save = fails
    try:
        save_checkpoint(model, optimizer, path)
    except OSError as error:
        return str(error)
    finally:
        torch.save = works


def test_an_older_checkpoint_outlives_a_save_that_fails(two, tmp_path):
    assert two(disk_full, tmp_path) == ["No space left on device"] * 2
    check_checkpoint(tmp_path)


def cut_off_between(path):
    """A second save that ends when rank 0 has its new file in place and rank 1 has not."""
    model, optimizer = new("adamw")
    save_checkpoint(model, optimizer, path)
    works = Path.replace

    def ends(part, file):
        if dist.get_rank() == 0:
            works(part, file)
        raise OSError("cut off")

    Path.replace = ends
    try:
        save_checkpoint(model, optimizer, path)
    except OSError as error:
        return str(error)
    finally:
        Path.replace = works


def test_files_of_two_saves_are_no_checkpoint(two, tmp_path):
    assert two(cut_off_between, tmp_path) == ["cut off"] * 2
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        check_checkpoint(tmp_path)
