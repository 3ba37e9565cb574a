"""ZeRO-3 with its shards in the host's memory must be the training of one process.

On a CPU host and device are one memory. What can still be held: that a shard has memory of its own,
that nothing gathered is left between uses, and how many bytes went over the link in between.
Tolerances are those of `test_zero.py`: the batch is added up in another order, 1e-12 in float64.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.parallel.zero_checkpoint import load_checkpoint, save_checkpoint
from dlcourse.training import by_hand
from dlcourse.training.sharding_offload.zero3_offload import OffloadedZeRO3

pytestmark = pytest.mark.usefixtures("nothing_before")

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

CONFIG = GPTConfig(n_layer=3, n_head=2, n_embd=30, block_size=16)  # 3 ranks: shards with padding
STEPS, EACH, SAVINGS = 3, 4, {"zero3": True, "offload": True}


@pytest.fixture(scope="module")
def three():
    with Ranks(3, device="cpu", default=False) as pool:
        yield pool


def batch_of(step, rank, world_size):
    sizes = {"micro_batch": EACH * (3 // world_size), "block": 16}
    return Corpus(limit=100_000).batch(step, rank=rank, world_size=world_size, **sizes)


def beside_one_process():
    """Largest difference of losses and of parameters, with accumulation and clipping."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    alone = GPT(CONFIG).double()
    model = OffloadedZeRO3(GPT(CONFIG, seed=rank).double())  # only rank 0 has seed 0
    optimizers = [torch.optim.AdamW(p, lr=1e-3) for p in (alone.parameters(), model.shards)]
    losses = parameters = 0.0
    for step in range(STEPS):
        mine = batch_of(step, rank, world_size)
        loss = by_hand.take_step(model, optimizers[1], mine, accumulate=2, clip=0.1)
        dist.all_reduce(loss)
        optimizers[0].zero_grad()
        want = alone(*batch_of(step, 0, 1))
        want.backward()
        torch.nn.utils.clip_grad_norm_(alone.parameters(), 0.1)
        optimizers[0].step()
        losses = max(losses, abs(loss.item() / world_size - want.item()))
        with model.gathered():
            pairs = zip(model.module.parameters(), alone.parameters(), strict=True)
            parameters = max(parameters, *((a - b).abs().max().item() for a, b in pairs))
    return losses, parameters


def test_it_is_the_training_of_one_process(three):
    for losses, parameters in three.run(beside_one_process):
        assert parameters < 1e-12
        assert losses < 1e-6  # take_step adds its parts' losses up in float32


def steps_by_hand(savings, *, dtype_is_bf16=False, accumulate=1):
    """Losses, the model and its optimizer after some steps."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    options = dict.fromkeys(savings, True) | {"bf16": dtype_is_bf16}
    model, optimizer = by_hand.prepare(GPT(CONFIG), **options)
    losses = []
    for step in range(STEPS):
        mine = batch_of(step, rank, world_size)
        loss = by_hand.take_step(model, optimizer, mine, accumulate=accumulate, clip=1.0)
        losses.append(loss.item())
    return losses, model, optimizer


def beside_shards_on_the_device(bf16):
    """Whether losses and shards are those of ZeRO-3 with the optimizer alone on the host."""
    here = steps_by_hand((*SAVINGS, "checkpoint"), dtype_is_bf16=bf16, accumulate=2)
    host = steps_by_hand(
        (*SAVINGS, "checkpoint", "offload_param"), dtype_is_bf16=bf16, accumulate=2
    )
    shards = zip(here[1].shards, host[1].shards, strict=True)
    assert type(here[1]) is ZeRO3 and type(host[1]) is OffloadedZeRO3
    return here[0] == host[0] and all(torch.equal(a, b) for a, b in shards)


@pytest.mark.parametrize("bf16", [False, True])
def test_where_shards_live_changes_no_bit(three, bf16):
    assert all(three.run(beside_shards_on_the_device, bf16))


def bytes_over_the_link(checkpoint, accumulate):
    """Moved in a step, as multiples of what this rank's shards take."""
    savings = (*SAVINGS, "offload_param", *(["checkpoint"] if checkpoint else []))
    _, model, _ = steps_by_hand(savings, accumulate=accumulate)
    return model.moved_bytes / STEPS / sum(shard.nbytes for shard in model.shards)


@pytest.mark.parametrize(("checkpoint", "accumulate"), [(False, 1), (True, 1), (False, 2)])
def test_shards_come_for_forward_and_backward_and_gradients_go(three, checkpoint, accumulate):
    assert three.run(bytes_over_the_link, checkpoint, accumulate) == [3 * accumulate] * 3


def memory_of_the_shards():
    """What a device would hold of a unit before, during and after its use; where a shard is."""
    _, model, optimizer = steps_by_hand((*SAVINGS, "offload_param"))
    flats = model.flats
    sizes = lambda: [flat.full.untyped_storage().nbytes() for flat in flats]  # noqa: E731
    storages = lambda ts: {t.untyped_storage().data_ptr() for t in ts}  # noqa: E731
    between, most = sum(sizes()), []
    for block in model.module.blocks:
        block.register_forward_hook(lambda *_: most.append(sum(sizes())))
    before = [shard.detach().clone() for shard in model.shards]
    model(*batch_of(0, dist.get_rank(), 3)).backward()
    grads = [shard.grad for shard in model.shards]
    apart = not storages([*model.shards, *grads]) & storages(flat.full for flat in flats)
    model.sync_gradients()
    optimizer.step()
    model.sync_parameters()
    changed = all(not torch.equal(a, b) for a, b in zip(before, model.shards, strict=True))
    with model.gathered():
        back = [torch.cat([p.flatten() for p in flat.parameters]) for flat in flats]
    numel = [flat.shard.numel() for flat in flats]
    mine = [row[n * dist.get_rank() :][:n] for row, n in zip(back, numel, strict=True)]
    same = all(torch.equal(a, s[: a.numel()]) for a, s in zip(mine, model.shards, strict=True))
    whole = sum(flat.nbytes for flat in flats)
    return between, sum(sizes()), max(most) / whole, apart, changed, same


def test_between_uses_nothing_is_left_on_the_device(three):
    for between, after, most, apart, changed, same in three.run(memory_of_the_shards):
        assert between == after == 0
        assert 0 < most < 0.9  # the rest of the model, a block, and the next one: never all
        assert apart  # neither a shard nor its gradient is a part of what is gathered
        assert changed and same  # what was updated on the host is what comes next


def saved_and_loaded(folder):
    """Losses that go on from a checkpoint: on the host, and in a plain ZeRO-3."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = OffloadedZeRO3(GPT(CONFIG))
    optimizer = torch.optim.AdamW(model.shards, lr=1e-3)
    by_hand.take_step(model, optimizer, batch_of(0, rank, world_size))
    save_checkpoint(model, optimizer, folder)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = [by_hand.take_step(model, optimizer, batch_of(1, rank, world_size)).item()]
    for kind in (ZeRO3, OffloadedZeRO3):
        again = kind(GPT(CONFIG, seed=5))
        adam = torch.optim.AdamW(again.shards, lr=1e-3)
        load_checkpoint(again, adam, folder)
        found.append(by_hand.take_step(again, adam, batch_of(1, rank, world_size)).item())
    last = OffloadedZeRO3(GPT(CONFIG, seed=6))
    last.load_state_dict(state)
    with torch.no_grad():
        found.append(last(*batch_of(1, rank, world_size)).item())
    return found


def test_checkpoints_and_state_dicts_are_those_of_zero3(three, tmp_path):
    for found in three.run(saved_and_loaded, str(tmp_path)):
        assert len(set(found)) == 1


@pytest.mark.parametrize("others", [{}, {"zero3": True}, {"offload": True}])
def test_parameter_offload_alone_is_refused(others):
    says = r"offload_param=True with zero3=.* and offload=.*give zero3=True and offload=True, or"
    with pytest.raises(ValueError, match=says):
        by_hand.prepare(GPT(CONFIG), offload_param=True, **others)
