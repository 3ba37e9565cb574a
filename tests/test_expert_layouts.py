"""What lesson 08 shows of cut experts and of capacities: the formulas, and what the tables say."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import cloudpickle
import pytest

from dlcourse import Ranks
from dlcourse.figures.expert_layouts import cut_bytes, show_capacity_over_ranks, show_cut_experts
from dlcourse.figures.expert_parallel import EXPERTS, TOKENS, TOP_K, WIDTH
from dlcourse.words.strings import set_language

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

HIDDEN = 64


@pytest.fixture(autouse=True)
def english():
    set_language("en")


def cut_step() -> dict:
    """Forward and backward of the lesson's layer over 2 x 2 ranks: what the recorder saw."""
    import torch

    from dlcourse.measure.recorder import Recorder
    from dlcourse.models.moe import MoE
    from dlcourse.parallel.expert_groups import ExpertDataParallel, make_expert_mesh

    torch.manual_seed(0)
    mesh = make_expert_mesh(expert=2, tensor=2)
    moe = MoE(WIDTH, num_experts=EXPERTS, top_k=TOP_K, hidden=HIDDEN)
    layer = ExpertDataParallel(moe, mesh)
    torch.manual_seed(mesh.get_local_rank("expert"))
    x_NC = torch.randn(TOKENS, WIDTH, requires_grad=True)
    with Recorder(0, 1) as recorder:
        layer(x_NC).square().mean().backward()
    return recorder.record


def test_a_layer_of_cut_experts_sends_what_the_formula_says():
    """All-reduces to the byte; tokens go where the router sends them, so 20% are allowed."""
    from dlcourse.formulas.traffic import wire_bytes

    with Ranks(4, default=False) as pool:
        records = pool.run(cut_step)
    sent = dict.fromkeys(("all_to_all", "all_reduce", "all_gather"), 0.0)
    for record in records:
        for event in record["comm"]:
            sent[event["op"]] += wire_bytes(event["op"], event["bytes"], event["group_size"]) / 4
    formula = cut_bytes(expert=2, tensor=2)
    assert sent["all_reduce"] == formula["all_reduce"]
    assert sent["all_gather"] == formula["all_gather"]
    assert sent["all_to_all"] == pytest.approx(formula["all_to_all"], rel=0.2)
    assert cut_bytes(expert=4, tensor=1)["all_reduce"] == 0
    assert cut_bytes(expert=1, tensor=2)["all_to_all"] == 0


def made_up_run(reduced: float) -> SimpleNamespace:
    ops = {"all_reduce": {"calls": 3, "wire_bytes": reduced}}
    ops["all_to_all"] = {"calls": 4, "wire_bytes": 1024.0}
    return SimpleNamespace(comm=SimpleNamespace(ranks=[{"ops": ops}] * 4))


def test_the_table_refuses_bytes_and_differences_that_do_not_hold():
    right = cut_bytes(expert=2, tensor=2)["all_reduce"]
    said = repr(show_cut_experts(made_up_run(right), {"output": 1e-7}))
    assert "516 KiB" in said and "cut experts equal one process" in said
    with pytest.raises(AssertionError, match="all-reduce"):
        show_cut_experts(made_up_run(right - 4), {"output": 1e-7})
    with pytest.raises(AssertionError, match="one process"):
        show_cut_experts(made_up_run(right), {"output": 1e-4})


def a_row(dropped: float, sent: float) -> dict[str, float]:
    rest = {"fullest": 1.5, "seconds": 0.1, "loss": 3.0, "tokens": 512, "width": 64}
    return {"dropped": dropped, "sent": sent} | rest


def test_capacities_are_shown_as_means_over_the_ranks_and_empty_places_by_formula():
    found = [{"loss": {2: a_row(0.1, sent), None: a_row(0.0, sent)}} for sent in (0, 2048)]
    first, last = show_capacity_over_ranks(found).rows
    # 512 tokens, two copies of 256 bytes, half of them leave, there and back, twice as many places
    assert first == [
        "balance loss",
        "2",
        "10.0%",
        "1 KiB",
        "512 KiB",
        "1.50 ×",
        "1.00 ×",
        "3.000",
    ]
    assert last[:5] == ["", "dropless", "0.0%", "1 KiB", "–"]
    with pytest.raises(AssertionError):
        show_capacity_over_ranks([{"loss": {2: a_row(0.1, 0), None: a_row(0.2, 0)}}])
