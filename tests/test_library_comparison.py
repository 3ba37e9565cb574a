"""Implementations side by side: what is measured of each, and the table of it."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import torch

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.peers import zero as peers
from dlcourse.peers.comparison import compare_steps, one_step
from dlcourse.words.strings import set_language

cloudpickle.register_pickle_by_value(sys.modules[__name__])
CONFIG = GPTConfig(n_layer=2, n_embd=32, n_head=2, block_size=16)


@pytest.fixture(scope="module")
def found():
    with Ranks(2) as ranks:
        return ranks.run(side_by_side)


def side_by_side():
    batch = Corpus(limit=100_000).batch(0, micro_batch=2, block=16)
    already_here = torch.ones(1_000_000)

    def alone():
        model = GPT(CONFIG)
        return one_step(model, torch.optim.AdamW(model.parameters()), *batch)

    def torchs_zero1():
        step = peers.training_step(GPT(CONFIG), "ZeroRedundancyOptimizer", micro_batch=2)
        return lambda: step(*batch)

    rows = {"alone": compare_steps(alone), "torch": compare_steps(torchs_zero1, alone())}
    assert already_here.sum() == 1_000_000
    return rows


def test_what_a_step_takes_and_nothing_else(found):
    states = 4 * GPT(CONFIG).num_parameters()
    for rows in found:
        alone, theirs = rows["alone"], rows["torch"]
        assert alone["memory"]["parameters"] == theirs["memory"]["parameters"] == states
        assert sum(alone["memory"].values()) < 4_000_000  # without the tensor that was here before
        assert alone["memory"]["optimizer_state"] == pytest.approx(2 * states, rel=0.01)
        assert theirs["memory"]["optimizer_state"] < 0.8 * alone["memory"]["optimizer_state"]
        assert alone["calls"] == 0 and theirs["calls"] > 0
        if theirs["sent"] is not None:  # ranks say a few words to their store now and then
            assert alone["sent"] < 5_000 < theirs["sent"]
        assert theirs["loss"] == pytest.approx(alone["loss"], abs=1e-5)  # same batch in both ranks
        assert "ratio" not in alone and theirs["ratio"] > 0


def test_the_table_takes_the_rank_that_needs_most(found):
    rows = {name: [rank[name] for rank in found] for name in ("alone", "torch")}
    set_language("ko")
    rows["torch"][1]["memory"]["other"] += 2**30
    table = library_comparison_table(rows, reference="alone", absent=["DeepSpeed 9"])
    assert [row[0] for row in table.rows] == ["alone", "torch", "DeepSpeed 9 (설치되어 있지 않음)"]
    assert float(table.rows[1][5]) > 1024 > float(table.rows[0][5])
    assert table.rows[0][2] == "1" and len(table.header) == 12
    both = [{**rows["alone"][0], "loss": loss} for loss in (0.0, 3.0)]
    assert library_comparison_table({"x": both}, reference="x").rows[0][1] == "1.5000"
    assert library_comparison_table({"x": both}, reference="x", loss=max).rows[0][1] == "3.0000"
