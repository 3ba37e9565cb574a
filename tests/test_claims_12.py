"""The verdict on D4 is computed anew, at the claim's own size: 100 layers, 6 GB, three devices.

Tensors have shapes and no numbers; their bytes are exact. Activations may be off by 5%: which
buffer is freed first is torch's own affair. That real ranks keep what the formulas say, and
compute what one process computes, is in test_sharding_offload.py.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dlcourse.course.claims import find_claim
from dlcourse.formulas.devices import at_peak, check_devices, device_needs, layer_ranges
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline_schedules import gpipe
from dlcourse.parallel.pipeline_simulation import simulate
from dlcourse.parallel.pipeline_stages import Stage

pytestmark = pytest.mark.usefixtures("nothing_before")

CONFIG = GPTConfig(n_layer=100, n_head=16, n_embd=1120, block_size=1024)
SIZES = [33, 33, 34]
STATES = ("parameters", "gradients", "optimizer_state")


def forward_and_backward(config, layers):
    """Of the middle or the last device: its largest bytes by category."""
    with torch.device("meta"):
        stage = Stage(GPT(config), layers)
    with FakeTensorMode(allow_non_fake_inputs=True):
        state = {name: torch.empty(p.shape) for name, p in stage.state_dict().items()}
        stage.load_state_dict(state, assign=True)
        x = torch.zeros(1, 1024, config.n_embd, requires_grad=True)
        targets = torch.zeros(1, 1024, dtype=torch.long)
        with Recorder(0, 1) as recorder:
            y = stage(x, targets) if stage.is_last else stage(x)
            y.backward(None if stage.is_last else torch.ones_like(y))
    return recorder.record["memory"]["peaks"]


def test_d4():
    claim = find_claim("D4")
    assert claim.verdict == "holds_when"
    found = {figure.name: figure.value for figure in claim.figures}
    needs = device_needs(CONFIG, SIZES, micro_batch=1, block=1024)
    total = sum(need["parameters"] for need in needs)
    assert total == pytest.approx(6e9, rel=0.01)  # it is the claim's model
    assert all(need["parameters"] == pytest.approx(2e9, rel=0.03) for need in needs)
    peaks = forward_and_backward(CONFIG, layer_ranges(100, SIZES)[1])
    assert peaks["parameters"] == peaks["gradients"] == needs[1]["parameters"]
    assert peaks["parameters"] / 1e9 == pytest.approx(found["weights"], abs=0.001)
    assert peaks["activations"] == pytest.approx(needs[1]["activations"], rel=0.05)
    assert peaks["activations"] / 1e9 == pytest.approx(found["activations"], rel=0.05)
    highest = peaks["parameters"] + needs[1]["optimizer_state"] + peaks["activations"]
    assert highest / 1e9 == pytest.approx(found["peak"], rel=0.02)
    assert highest == pytest.approx(sum(at_peak(needs[1]).values()), rel=0.02)
    states = [sum(need[name] for name in STATES) for need in needs]
    assert states[1] / 1e9 == pytest.approx(found["states"], abs=0.001)
    assert all(3.9 * 2e9 < count < 4.2 * 2e9 for count in states)  # four times what is claimed
    # A vocabulary of 256 hides what is at the ends: embedding, output layer and loss
    large = replace(CONFIG, vocab_size=50257)
    ends = device_needs(large, SIZES, micro_batch=1, block=1024)
    matrix = 4 * (50257 - 256) * CONFIG.n_embd
    assert [b["parameters"] - a["parameters"] for a, b in zip(needs, ends, strict=True)] == [
        matrix, 0, matrix,
    ]  # fmt: skip
    assert matrix / 1e9 == pytest.approx(found["vocabulary"], abs=0.001)
    last = forward_and_backward(large, layer_ranges(100, SIZES)[2])
    assert last["activations"] == pytest.approx(ends[2]["activations"], rel=0.05)
    assert last["activations"] / 1e9 == pytest.approx(found["loss"], rel=0.05)
    idle = simulate(gpipe(3, 1)).idle_over_total
    assert 100 * idle == pytest.approx(found["idle"], abs=0.1)


def test_one_device_is_refused():
    check_devices(2)
    with pytest.raises(ValueError, match="num_ranks=1: layers cannot be divided, give 2 or more"):
        check_devices(1)
