"""The verdict on claim B3, computed anew: twelve layers over four ranks, with micro-batches.

What follows from arithmetic and from sizes must come out again; times are not claimed.
"""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch.distributed as dist

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.course.claims import find_claim
from dlcourse.course.exercises import measured
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline import PipelineParallel, train
from dlcourse.parallel.pipeline_schedules import gpipe, one_f_one_b
from dlcourse.parallel.pipeline_simulation import simulate
from dlcourse.training import loop

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

LR = 1e-3
CONFIG = GPTConfig(n_layer=12, n_embd=64, block_size=64)


def twelve_layers():
    corpus, job = Corpus(), dict(steps=5, batch_size=16, block=64, lr=LR)
    model, alone = PipelineParallel(GPT(CONFIG), one_f_one_b(4, 8)), GPT(CONFIG)
    train(model, corpus, **job)
    loop.train(alone, corpus, **job)
    theirs = dict(alone.named_parameters())
    (stage,) = model.stages
    apart = max((p - theirs[name]).abs().max().item() for name, p in stage.named_parameters())
    with measured() as seen:
        train(model, corpus, **(job | dict(steps=1)))
    return {
        "rank": dist.get_rank(),
        "layers": [int(name) + 1 for name in stage.blocks],
        "apart": 100 * apart / LR,
        "parameters": sum(p.numel() for p in stage.parameters()),
        "activations": seen.record["memory"]["peaks"]["activations"],
    }


def test_b3():
    claim = find_claim("B3")
    recorded = {figure.name: figure.value for figure in claim.figures}
    with Ranks(4, default=False) as ranks:
        found = ranks.run(twelve_layers)

    # It holds: the split as given, and the training of one process ...
    assert [row["layers"] for row in found] == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]]
    assert max(row["apart"] for row in found) < 5 and recorded["apart"] < 5
    # ... but ranks are fed only with many micro-batches, and equal layers are not equal loads.
    assert recorded["idle_1"] == pytest.approx(100 * simulate(gpipe(4, 1)).idle_over_total)
    assert recorded["idle_8"] == pytest.approx(
        100 * simulate(one_f_one_b(4, 8)).idle_over_total, abs=0.05
    )
    sizes = [row["parameters"] for row in found]
    assert recorded["parameters"] == pytest.approx(max(sizes) / min(sizes), abs=0.005)
    kept = found[0]["activations"] / found[3]["activations"]
    assert kept > 2.5
    assert recorded["activations"] == pytest.approx(kept, rel=0.05)
    assert claim.verdict == "holds_when"
