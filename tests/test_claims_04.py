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
from dlcourse.collectives.tcp_counters import wire_counters
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
    before = wire_counters()
    y, sent, ops = measured(lambda: column(x))
    counted = wire_counters()[0] - before[0] if before else sent
    apart = (y - whole(x)).abs().max().item()
    columns = len(column.weight)
    return {"columns": columns, "apart": apart, "sent": sent, "counted": counted, "ops": ops}


def two_layers():
    """The same MLP with an all-gather after each matrix, and by columns, then rows."""
    torch.manual_seed(0)
    mlp, x = MLP(GPTConfig()), torch.randn(64, 128, requires_grad=True)
    gathering = [ColumnParallelLinear(layer, gather_output=True) for layer in (mlp.up, mlp.down)]
    joined = [ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)]
    found = {"sent": [], "ops": [], "off": 0.0}
    wanted = mlp(x)
    (wanted_grad,) = torch.autograd.grad(wanted.square().sum(), x)
    for up, down in (gathering, joined):
        y, forward, ops = measured(lambda up=up, down=down: down(F.gelu(up(x))))
        (grad,), backward, _ = measured(lambda y=y: torch.autograd.grad(y.square().sum(), x))
        found["sent"].append([forward, forward + backward])
        found["ops"].append(ops)
        off = max((a - b).abs().max().item() for a, b in ((y, wanted), (grad, wanted_grad)))
        found["off"] = max(found["off"], off)
    return found


def columns_that_do_not_divide():
    padded = len(ColumnParallelLinear(nn.Linear(8, 4098), pad=True).weight)
    try:
        ColumnParallelLinear(nn.Linear(8, 4098))
    except ValueError as error:
        return padded, str(error)


def test_b2():
    claim = find_claim("B2")
    recorded = {figure.name: figure.value for figure in claim.figures}
    with Ranks(4, default=False) as ranks:
        given, pairs = ranks.run(as_given), ranks.run(two_layers)
        uneven = ranks.run(columns_that_do_not_divide)

    # It holds: 1024 columns each, one all-gather, the output of the whole layer ...
    for result in given:
        assert result["columns"] == recorded["columns"] == 1024
        assert result["sent"] == recorded["sent"] == 3 / 4 * 64 * 4096 * 4
        assert result["counted"] == pytest.approx(recorded["sent"], rel=0.01)  # and headers
        assert result["ops"] == {"all_gather"}
        assert result["apart"] < 1e-5 and recorded["apart"] < 1e-5
    # ... when every rank needs it whole: a next matrix cut by rows does not.
    for result in pairs:
        (forward_a, step_a), (forward_b, step_b) = result["sent"]
        assert result["ops"] == [{"all_gather"}, {"all_reduce"}]
        assert forward_a / forward_b == pytest.approx(recorded["ways"]) == pytest.approx(2.5)
        assert step_a / step_b == pytest.approx(recorded["ways_with_backward"])
        assert result["off"] < 1e-5
    for padded, message in uneven:
        assert padded == 1025
        assert "out_features=4098 cannot be cut into 4 equal parts" in message
    assert claim.verdict == "holds_when"
