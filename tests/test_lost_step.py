"""A step that a rank has left is told; afterwards the model trains on as if it had not been.

The engine cuts the connections of the ranks that wait and makes their group anew. A wrapper that
still waits for messages of the old group, or still owes some to it, would fail in each later step.
"""

from __future__ import annotations

import pytest

from dlcourse import RankError, Ranks

SETUP = """
from contextlib import nullcontext
from torch import nn
from dlcourse.parallel.data import (
    BucketedDataParallel, NaiveDataParallel, OverlappedDataParallel
)
from dlcourse.parallel.zero import ZeRO1
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3

class Left(Exception):
    pass

def leave(*_):
    raise Left

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.leaves_in = None
        self.double()

    def forward(self, x):
        for i, block in enumerate(self.blocks):
            x = torch.tanh(block(x))
            if i == 2 and self.leaves_in == "forward":
                leave()
            if i == 2 and self.leaves_in == "backward":
                x.register_hook(leave)
        return x.square().mean()

whole = torch.randn(4 * world_size, 8, generator=torch.Generator().manual_seed(1)).double()
x = whole.chunk(world_size)[rank]

all_reduce, calls = dist.all_reduce, []

def second_leaves(*args, **options):
    calls.append(args)
    return leave() if len(calls) == 2 else all_reduce(*args, **options)

def leaves(model, where):
    model.module.leaves_in = where
    dist.all_reduce = second_leaves if where == "sync" else all_reduce
    calls.clear()

def wrap(wrapper):
    one_a_layer = {"bucket_cap_mb": 0.0, "first_bucket_mb": 0.0}
    has_buckets = wrapper in (BucketedDataParallel, OverlappedDataParallel)
    return wrapper(Net(), **one_a_layer if has_buckets else {})

def step(model):
    shards = getattr(model, "shards", None) or model.module.parameters()
    optimizer = torch.optim.SGD(shards, lr=0.1)
    model.zero_grad()
    model(x).backward()
    model.sync_gradients()
    optimizer.step()
    if hasattr(model, "sync_parameters"):
        model.sync_parameters()

def apart(model, steps):
    net = Net()
    for _ in range(steps):
        net.zero_grad()
        net(whole).backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    with model.gathered() if hasattr(model, "gathered") else nullcontext():
        pairs = zip(model.module.parameters(), net.parameters(), strict=True)
        return [(a - b).abs().max().item() for a, b in pairs]
"""

WRAPPERS = [
    "NaiveDataParallel",
    "BucketedDataParallel",
    "OverlappedDataParallel",
    "ZeRO1",
    "ZeRO2",
    "ZeRO3",
]
EXACT = 1e-12  # float64: the mean of two ranks' gradients rounds in the last digits


@pytest.fixture(scope="module")
def ranks():
    with Ranks(2, default=False) as ranks:
        ranks.cell(SETUP)
        yield ranks


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_a_rank_that_leaves_a_step_spoils_no_later_one(ranks, wrapper, where):
    spoils_none(ranks, wrapper, f"if rank == 0:\n    leaves(model, {where!r})")


@pytest.mark.parametrize(
    ("wrapper", "where"),
    [
        ("OverlappedDataParallel", "backward"),
        ("ZeRO2", "backward"),
        ("ZeRO3", "backward"),
        ("BucketedDataParallel", "sync"),
        ("OverlappedDataParallel", "sync"),
    ],
)
def test_all_ranks_leave_a_step_at_once(ranks, wrapper, where):
    """As at a Stop: they are in step, and their connections stay."""
    spoils_none(ranks, wrapper, f"leaves(model, {where!r})")


def spoils_none(ranks, wrapper, leaves):
    ranks.cell(f"model = wrap({wrapper})\nstep(model)")
    with pytest.raises(RankError, match="Left"):
        ranks.cell(f"{leaves}\nstep(model)")
    ranks.cell("leaves(model, None)\nstep(model)\nstep(model)")
    ranks.cell("found = apart(model, 3)")
    assert all(value <= EXACT for of_rank in ranks["found"] for value in of_rank), ranks["found"]
