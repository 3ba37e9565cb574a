"""The verdict on claim B2, computed anew: 1024 of 4096 columns, and what the all-gather is for.

The recorded figures that depend on arithmetic alone must come out again; times are not claimed.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from dlcourse import Ranks
from dlcourse.course.claims import find_claim
from dlcourse.measure.recorder import Recorder
from dlcourse.measure.run import Run
from dlcourse.models.gpt import MLP, GPTConfig
from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file


def measured(function):
    """What a function returns, and the bytes that this rank sends for it, by theory."""
    with Recorder(dist.get_rank(), dist.get_world_size()) as recorder:
        result = function()
    comm = Run([recorder.record]).comm.ranks[0]
    return result, comm["wire_bytes"], set(comm["ops"])


@torch.no_grad()
def as_given():
    torch.manual_seed(0)
    whole = nn.Linear(4096, 4096, bias=False)
    column = ColumnParallelLinear(whole, gather_output=True)
    x = torch.randn(64, 4096)
    y, sent, ops = measured(lambda: column(x))
    apart = (y - whole(x)).abs().max().item()
    return {"columns": len(column.weight), "apart": apart, "sent": sent, "ops": ops}


@torch.no_grad()
def two_layers():
    """The same MLP with an all-gather after each matrix, and by columns, then rows."""
    torch.manual_seed(0)
    mlp, x = MLP(GPTConfig()), torch.randn(64, 128)
    up = ColumnParallelLinear(mlp.up, gather_output=True)
    down = ColumnParallelLinear(mlp.down, gather_output=True)
    a, sent_a, ops_a = measured(lambda: down(F.gelu(up(x))))
    up, down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)
    b, sent_b, ops_b = measured(lambda: down(F.gelu(up(x))))
    off = max((y - mlp(x)).abs().max().item() for y in (a, b))
    return {"ways": sent_a / sent_b, "ops_a": ops_a, "ops_b": ops_b, "off": off}


def refused():
    try:
        ColumnParallelLinear(nn.Linear(8, 4098))
    except ValueError as error:
        return str(error)


def test_b2():
    claim = find_claim("B2")
    recorded = {figure.name: figure.value for figure in claim.figures}
    with Ranks(4, default=False) as ranks:
        given, pairs, messages = ranks.run(as_given), ranks.run(two_layers), ranks.run(refused)

    # It holds: 1024 columns each, one all-gather, the output of the whole layer ...
    for result in given:
        assert result["columns"] == recorded["columns"] == 1024
        assert result["sent"] == recorded["sent"] == 3 / 4 * 64 * 4096 * 4
        assert result["ops"] == {"all_gather"}
        assert result["apart"] < 1e-5 and recorded["apart"] < 1e-5
    # ... when every rank needs it whole: a next matrix cut by rows does not.
    for result in pairs:
        assert result["ops_a"] == {"all_gather"} and result["ops_b"] == {"all_reduce"}
        assert result["ways"] == pytest.approx(recorded["ways"]) == pytest.approx(2.5)
        assert result["off"] < 1e-6
    assert "out_features=4098 cannot be cut into 4 equal parts" in messages[0]
    assert claim.verdict == "holds_when"
