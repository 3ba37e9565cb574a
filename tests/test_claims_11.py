"""The verdict on D3 is computed anew: what checkpoints save, of which memory, and for what.

Activations and FLOPs are exact. The peak of all memory depends a little on which buffer is freed
first, so savings may be off by two points.
"""

from __future__ import annotations

import gc

import pytest
import torch

from dlcourse.course.claims import find_claim
from dlcourse.formulas.flops import step_flops
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.training.checkpointing.segments import (
    PRODUCTS,
    checkpoint_blocks,
    early_stop,
    reentrant,
    selective,
)

pytestmark = pytest.mark.usefixtures("nothing_before")

CONFIG = GPTConfig(n_layer=12, n_embd=64, block_size=64)
EACH = [1] * 12


def step(sequences, segments, how):
    """A step with AdamW whose state is there already: its record."""
    gpt = checkpoint_blocks(GPT(CONFIG), segments, how)
    optimizer = torch.optim.AdamW(gpt.parameters())
    tokens = torch.zeros(sequences, 64, dtype=torch.long)

    def one():
        gpt(tokens, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    one()
    gc.collect()
    with Recorder(0, 1) as recorder:
        one()
    return recorder.record


def saved(sequences, how, what):
    plain, light = (what(step(sequences, segments, how)) for segments in ([], EACH))
    return 100 * (1 - light / plain)


def whole(record):
    return record["memory"]["peak_bytes"]


def activations(record):
    return record["memory"]["peaks"]["activations"]


def share_of_activations(sequences):
    """Percent of all memory at its peak, without a checkpoint."""
    memory = step(sequences, [], reentrant)["memory"]
    return 100 * memory["at_peak"]["activations"] / memory["peak_bytes"]


def more_flops(how):
    plain, light = (step(1, segments, how)["flops"] for segments in ([], EACH))
    return 100 * (light / plain - 1)


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: two threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_d3():
    claim = find_claim("D3")
    assert claim.verdict == "holds_when"
    found = {figure.name: figure.value for figure in claim.figures}
    few, many = (saved(sequences, reentrant, whole) for sequences in (1, 16))
    assert few == pytest.approx(found["few"], abs=2)
    assert many == pytest.approx(found["many"], abs=2)
    assert few < 30 < 70 < many
    # From which share of activations to which: a little less than half is too little
    half, more, most = (share_of_activations(sequences) for sequences in (2, 3, 12))
    assert 45 < half < 50 < more < 60
    assert saved(2, reentrant, whole) == pytest.approx(found["half"], abs=2)
    assert saved(2, reentrant, whole) < 30 < saved(3, reentrant, whole) < 70
    assert most == pytest.approx(found["share"], abs=1)
    assert saved(12, reentrant, whole) == pytest.approx(70, abs=2)
    assert saved(4, reentrant, activations) == pytest.approx(found["activations"], abs=0.5)
    assert more_flops(reentrant) == pytest.approx(found["reentrant"], abs=0.1)
    assert more_flops(early_stop) == pytest.approx(found["early_stop"], abs=0.1)
    products = selective(*PRODUCTS)
    assert more_flops(products) == 0
    assert saved(4, products, activations) == pytest.approx(found["selective"], abs=0.5)
    # A model of any shape stays below the limit: deep, wide, with long sequences
    more = []
    for sizes, block in ((dict(n_layer=100), 128), (dict(n_embd=4096), 128), ({}, 4096)):
        config, batch = GPTConfig(**sizes), dict(micro_batch=4, block=block)
        again = step_flops(config, **batch, segments=[1] * config.n_layer)
        more.append(100 * (again / step_flops(config, **batch) - 1))
    assert max(more) == pytest.approx(found["limit"], abs=0.2) and found["limit"] < 50
