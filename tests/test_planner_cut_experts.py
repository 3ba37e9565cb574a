"""Times of a plan whose experts are cut over the tensor ranks too, against what these ranks send.

The bytes are held against the ledger in `test_planner_ranks.py`; here seconds follow from them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.communication import all_reduce_seconds, gather_seconds
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layer_time import layer_time
from dlcourse.plan.layout_bytes import layout_bytes
from dlcourse.plan.layout_memory import stage_numbers
from dlcourse.plan.layout_space import all_layouts
from dlcourse.plan.layout_time import step_seconds
from dlcourse.plan.layouts import Layout, Layouts, stage_layers
from dlcourse.plan.planner import judge


def job_of(*, cut, gpus=8, **other):
    """Mixtral with biases, none of its dense collectives hidden, and none at its ends."""
    shape = replace(published_model("mixtral-8x7b"), mlp_bias=True)
    cluster = cluster_of("h100", gpus=gpus)
    usual = dict(sequence_parallel=False, overlap_backward=False, vocab_parallel=False)
    usual |= dict(dispatch="plain")
    batch = dict(batch_tokens=16 * 4096, sequence=4096)
    return Job(shape=shape, cluster=cluster, cut_experts=cut, **usual | batch | other)


def times(job, **layout):
    """Of one layer with experts, by name."""
    found = layer_time(job, Layouts.of([Layout(**layout)]), moe=True)
    return {name: float(value[0]) for name, value in vars(found).items()}


def seconds(call, *numbers):
    return float(call(*numbers[:1], *map(np.array, numbers[1:])))


def test_without_tensor_ranks_there_is_nothing_to_cut():
    for layout in (dict(data=8), dict(data=8, expert=4), dict(data=2, context=4, expert=2)):
        assert times(job_of(cut=True), **layout) == times(job_of(cut=False), **layout)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_rows_and_biases_that_are_sent_are_waited_for(recompute):
    job, again = job_of(cut=True), recompute == "full"
    layout = Layout(tensor=8, micro_batch=2, recompute=recompute)
    m, layers, tokens = 8, job.shape.layers, 2 * 4096
    rows, biases = tokens * job.shape.top_k * job.shape.hidden * 2, 8 * job.shape.hidden * 2
    sent = [x for x in layout_bytes(job, layout) if x.what == "tokens"]
    assert [(x.side, x.op, x.ranks) for x in sent] == [("tensor", "all_reduce", 8)]
    assert sent[0].nbytes == m * layers * ((2 + again) * rows + biases)
    one = seconds(gather_seconds, job.cluster, tokens * job.shape.hidden * 2, 8, 1)
    want = (2 + again) * 2 * one + (2 + again) * seconds(
        all_reduce_seconds, job.cluster, rows, 8, 1
    )
    want += seconds(all_reduce_seconds, job.cluster, biases, 8, 1)
    found = step_seconds(job, Layouts.of([layout]))["communication"][0]
    assert found == pytest.approx(m * layers * want)
    without = replace(job, shape=replace(job.shape, mlp_bias=False))
    less = step_seconds(without, Layouts.of([layout]))["communication"][0]
    assert found - less == pytest.approx(
        m * layers * seconds(all_reduce_seconds, job.cluster, biases, 8, 1)
    )


def test_experts_compute_a_part_of_all_rows_and_sort_them_all():
    """As many FLOPs as whole experts on a part of the tokens; more bytes to sort and sum."""
    part, whole = (
        times(job_of(cut=cut, sequence=16384, batch_tokens=2**16), tensor=4, data=2)
        for cut in (True, False)
    )
    rows = 16384 * 2
    job = job_of(cut=True)
    moved = (rows - rows / 4) * 2 * job.shape.hidden * 4
    rate = job.cluster.bandwidth * job.cluster.permute_efficiency
    more = part["forward"] - whole["forward"]
    assert more == pytest.approx(moved / rate, rel=0.25)  # and the router, on all tokens
    assert part["forward"] < 1.5 * whole["forward"]


def test_each_tensor_rank_exchanges_all_its_tokens():
    """Twice the bytes, less what it takes to start; and the group of ranks two apart may be over
    two nodes where neighbours share one."""
    for gpus, least, most in ((8, 1.8, 2.0), (16, 3.0, 20.0)):
        trips = []
        for cut in (True, False):
            job, sides = job_of(cut=cut, gpus=gpus), dict(tensor=2, data=gpus // 2)
            there = [times(job, **sides, expert=e)["wait_forward"] for e in (gpus // 2, 1)]
            trips.append(there[0] - there[1])
        assert least < trips[0] / trips[1] <= most


def test_copies_of_cut_experts_are_as_far_apart_as_they_are():
    job, layout = job_of(cut=True, gpus=32, overlap_data=False), Layout(data=16, tensor=2, expert=2)
    one = Layouts.of([layout])
    numbers, experts = (
        float(n[0]) for n in stage_numbers(job, one, stage_layers(job, one)[0], "first")
    )
    wait = times(job, data=16, tensor=2, expert=2)
    waits = job.shape.layers * (wait["wait_forward"] + wait["wait_backward"])
    data = seconds(all_reduce_seconds, job.cluster, 4 * numbers, 16, 2)
    data += seconds(all_reduce_seconds, job.cluster, 4 * experts, 8, 4)  # tensor x expert apart
    found = step_seconds(job, one)["communication"][0]
    assert found == pytest.approx(waits + data)


def test_only_data_and_context_ranks_hold_other_experts():
    job = job_of(cut=True)
    expert, hold = (getattr(all_layouts(job), n) for n in ("expert", "data"))
    hold = hold * all_layouts(job).context
    assert (hold % expert == 0).all() and (expert > 1).any()
    with pytest.raises(ValueError, match=r"expert=8 does not divide data x context = 4"):
        judge(job, Layout(data=4, tensor=2, expert=8))
    judge(job_of(cut=False), Layout(data=4, tensor=2, expert=8))
