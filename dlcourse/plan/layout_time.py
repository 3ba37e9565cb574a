"""Seconds of a step and what they are spent on, for many layouts at once.

    computing      the slowest stage's kernels, for all micro-batches, with what is computed again
    communication  what nothing hides: tensor, context, expert, pipeline and data parallelism
    bubble         a pipeline that fills and drains: (p - 1) / (v m) of a stage's time
    optimizer      reading and writing states and gradients
    offload        optimizer states in the host: gradients out, its update, parameters back

Rules of overlap: gradients are reduced beside the last micro-batch's backward, and with ZeRO
parameters are gathered beside the first forward; stage 3 gathers a layer beside the one before it,
and beside what that one waits for on the node's own links; messages between stages run beside
computing with chunks, and wait without. What is hidden still takes multiprocessors away
(``overlap_cost``).

Sources: Narayanan et al., SC 2021 (schedules); Qi et al., "Zero Bubble Pipeline Parallelism", 2023;
Rajbhandari et al., "ZeRO", SC 2020; bubbles as in ``dlcourse.formulas.bubbles``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dlcourse.plan.cluster import Cluster
from dlcourse.plan.communication import (
    all_reduce_seconds,
    disturbance,
    gather_seconds,
    send_seconds,
)
from dlcourse.plan.job import SENT_BYTES, STATE_BYTES, Array, Job
from dlcourse.plan.layer_time import core_flops, ends_time, ends_wait, expert_stride, layer_time
from dlcourse.plan.layout_memory import layer_sizes, own_share, stage_numbers
from dlcourse.plan.layouts import (
    OFFLOAD,
    RECOMPUTE,
    SCHEDULES,
    Layouts,
    stage_layers,
    vocab_ranks,
)
from dlcourse.plan.model_shape import matrix_numbers, training_flops

Collective = Callable[[Cluster, Array, Array, Array], Array]
Moved = tuple[Array, Array]  # seconds, and what they cost where they are hidden
SECONDS = ("computing", "communication", "bubble", "optimizer", "offload")
# Share of 1F1B's bubble that is left
BUBBLE = {"gpipe": 1.0, "1f1b": 1.0, "interleaved": 1.0, "zb-h1": 1 / 3, "zb-v": 0.0}
_FULL, _SELECTIVE = RECOMPUTE.index("full"), RECOMPUTE.index("selective")


def step_seconds(job: Job, layouts: Layouts) -> dict[str, Array]:
    """Seconds by ``SECONDS`` and "total" of each layout, each by its slowest rank."""
    parts = _distinct(job, layouts)
    first, middle, last = stage_layers(job, layouts)
    m = layouts.micro_batches(job)
    p, v = layouts.pipeline, layouts.chunks
    # Stages: whole ones, and the last one with the output layer
    compute, wait = parts["layer"], parts["layer_wait"]
    one = p == 1
    in_middle = middle * compute
    at_last = last * compute + parts["head"] + np.where(one, parts["embedding"], 0.0)
    at_first = first * compute + parts["embedding"]
    stage = np.where(one, at_last, np.maximum(np.maximum(in_middle, at_first), at_last))
    # What the ends wait for counts where they are what the other stages wait for
    at_end = np.where(at_last == stage, parts["head_wait"], 0.0)
    at_start = np.where(one | (at_first == stage), parts["embedding_wait"], 0.0)
    ends = np.where(one, at_end + at_start, np.maximum(at_end, at_start))
    waits = np.where(one, last, middle) * wait + ends
    send = _sends(job, layouts)
    left = np.array([BUBBLE[name] for name in SCHEDULES])[layouts.schedule.astype(int)]
    mean = middle * (compute + wait) + send
    bubble = (p - 1) / v * mean * left
    data_wait, hidden = _data(job, layouts, parts, middle)
    found = {
        "computing": m * (stage + middle * parts["hidden"]) + hidden,
        "communication": m * (waits + send) + data_wait + _tied(job, layouts),
        "bubble": bubble,
    }
    numbers, experts = stage_numbers(job, layouts, first, "first")
    share = own_share(job, layouts, numbers, experts)
    away = layouts.offload == OFFLOAD.index("optimizer")
    gradient = STATE_BYTES[job.states][1]
    # Gradients read for their norm, then with master weights and two moments; all written; and
    # gradients set to zero
    held = np.where(layouts.stage >= 2, share, numbers + experts)
    update = (share * (min(gradient, 4) * 2 + 26) + held * gradient) / job.cluster.stream
    found["optimizer"] = np.where(away, 0.0, update)
    found["offload"] = np.where(away, _offload(job, share), 0.0)
    return found | {"total": np.sum([found[name] for name in SECONDS], axis=0)}


def _distinct(job: Job, layouts: Layouts) -> dict[str, Array]:
    """Times of a layer and of the ends; they depend on a few numbers only, so few are computed."""
    keys = (
        *(layouts.tensor, layouts.context, layouts.micro_batch, layouts.expert),
        *(layouts.recompute, layouts.stage == 3),
    )
    back = np.zeros(len(layouts), np.int64)
    for key in keys:  # one number for each combination so far
        back = back * int(key.max(initial=0) + 1) + key.astype(np.int64)
        _, where, back = np.unique(back, return_index=True, return_inverse=True)
    few, shape = layouts.take(where), job.shape
    found: dict[str, Array] = {}
    dense_share = 1 - shape.moe_layers / shape.layers
    total = {
        name: np.zeros(len(few))
        for name in ("layer", "layer_wait", "forward_wait", "hidden", "forward", "backward")
    }
    for moe, share in ((False, dense_share), (True, 1 - dense_share)):
        if share <= 0:
            continue
        each = layer_time(job, few, moe=moe)
        again = np.where(few.recompute == _FULL, each.forward, 0.0)
        again = np.where(few.recompute == _SELECTIVE, each.again, again)
        wait_again = np.where(few.recompute == _FULL, each.wait_forward, 0.0)
        total["forward"] += share * each.forward
        total["backward"] += share * (each.backward + again)
        total["layer"] += share * (each.forward + each.backward + again)
        total["layer_wait"] += share * (each.wait_forward + each.wait_backward + wait_again)
        total["forward_wait"] += share * each.wait_forward
        total["hidden"] += share * each.hidden
    head_forward, head_backward, embedding = ends_time(job, few)
    found = total | {"head": head_forward + head_backward, "embedding": embedding}
    found["embedding_wait"], found["head_wait"] = ends_wait(job, few)
    return {name: values[back] for name, values in found.items()}


def _sends(job: Job, layouts: Layouts) -> Array:
    """Messages between stages that one micro-batch waits for in the steady state.

    Tensor ranks send a part each and gather the whole inside the node, where they do not go on with
    a part (sequence parallelism).
    """
    tokens, t = layouts.micro_batch * job.sequence / layouts.context, layouts.tensor
    nbytes = tokens * 2 * job.shape.hidden
    part = nbytes / t if job.split_messages else nbytes
    one = send_seconds(job.cluster, part, t * layouts.context * layouts.data)
    if job.split_messages and not job.sequence_parallel:
        one = one + gather_seconds(job.cluster, nbytes, t, np.ones_like(t))
    beside = (layouts.schedule == SCHEDULES.index("interleaved")) & job.overlap_pipeline
    alone = layouts.pipeline == 1
    return np.where(np.logical_or(alone, beside), 0.0, 2 * layouts.chunks * one)


def _tied(job: Job, layouts: Layouts) -> Array:
    """Once a step: both ends of a pipeline have a tied embedding, and add up its gradients."""
    if not job.shape.tied:
        return np.zeros_like(layouts.data)
    numbers = job.shape.vocab * job.shape.hidden / vocab_ranks(job, layouts)
    apart = (layouts.pipeline - 1) * layouts.tensor * layouts.context * layouts.data
    two = np.where(layouts.pipeline > 1, 2.0, 1.0)
    nbytes = numbers * SENT_BYTES[job.states][1]
    return all_reduce_seconds(job.cluster, nbytes, two, np.maximum(apart, 1.0))


def _data(
    job: Job, layouts: Layouts, parts: dict[str, Array], layers: Array
) -> tuple[Array, Array]:
    """Of data parallelism and ZeRO in a step: exposed seconds, and what the hidden ones cost."""
    m, cluster = layouts.micro_batches(job), job.cluster
    value, sent = SENT_BYTES[job.states]
    first, _, _ = stage_layers(job, layouts)
    numbers, experts = stage_numbers(job, layouts, first, "first")
    size, stride = layouts.data * layouts.context, layouts.tensor
    expert_size = layouts.expert_data(job)
    expert_apart = layouts.expert * expert_stride(job, layouts)  # from one copy to the next

    costs = [disturbance(cluster, size, stride), disturbance(cluster, expert_size, expert_apart)]

    def both(collective: Collective, each: Array, each_expert: Array, nbytes: int) -> Moved:
        dense = collective(cluster, nbytes * each, size, stride)
        moe = collective(cluster, nbytes * each_expert, expert_size, expert_apart)
        moe = np.where(each_expert > 0, moe, 0.0)
        return dense + moe, dense * costs[0] + moe * costs[1]

    backward = layers * parts["backward"] + layers * parts["layer_wait"] / 2
    forward = layers * parts["forward"]
    # Plain: one all-reduce; stage 1: reduce-scatter, and parameters gathered
    plain = layouts.stage == 0
    whole = both(all_reduce_seconds, numbers, experts, sent)
    reduce = both(gather_seconds, numbers, experts, sent)
    ahead, ahead_cost = both(gather_seconds, numbers, experts, value)
    back, back_cost = (np.where(plain, w, r) for w, r in zip(whole, reduce, strict=True))
    ahead, ahead_cost = np.where(plain, 0.0, ahead), np.where(plain, 0.0, ahead_cost)
    hide_back, hide_ahead = (backward, forward) if job.overlap_data else (0 * m, 0 * m)
    exposed = np.maximum(0.0, back - hide_back) + np.maximum(0.0, ahead - hide_ahead)
    moved, cost = back + ahead, back_cost + ahead_cost

    # Stages 2 and 3: for each micro-batch, layer by layer
    layer, layer_experts = layer_sizes(job, layouts)
    layer_reduce, reduce_cost = both(gather_seconds, layer, layer_experts, sent)
    layer_gather, gather_cost = both(gather_seconds, layer, layer_experts, value)
    third = layouts.stage == 3
    layer_gather, gather_cost = np.where(third, layer_gather, 0), np.where(third, gather_cost, 0)
    wait_back = layer_reduce + layer_gather
    wait_ahead = layer_gather
    if job.overlap_data:  # beside computing, and beside what goes over other links meanwhile
        free = _inside_node(job, layouts)
        beside = parts["backward"] + free * (parts["layer_wait"] - parts["forward_wait"])
        wait_back = np.maximum(0.0, wait_back - beside)
        beside = parts["forward"] + free * parts["forward_wait"]
        wait_ahead = np.maximum(0.0, wait_ahead - beside)
    each = layers * (wait_back + wait_ahead) + layer_gather + layer_reduce  # first and last layer
    at_end = np.where(layouts.stage == 2, np.maximum(0.0, ahead - hide_ahead), 0.0)
    fine = layouts.stage >= 2
    exposed = np.where(fine, m * each + at_end, exposed)
    moved = np.where(fine, m * layers * (layer_reduce + 2 * layer_gather), moved)
    cost = np.where(fine, m * layers * (reduce_cost + 2 * gather_cost), cost)
    hidden = np.maximum(0.0, moved - exposed) * cost / np.maximum(moved, 1e-12)
    alone = size * layouts.tensor <= 1
    return np.where(alone, 0.0, exposed), np.where(alone, 0.0, hidden)


def _inside_node(job: Job, layouts: Layouts) -> NDArray[np.bool_]:
    """Where tensor, context and expert ranks stay in a node and data ranks do not: what a layer
    waits for goes over the node's links, and leaves the network's cards to data parallelism."""
    node, close = job.cluster.node, layouts.tensor * layouts.context
    experts = layouts.expert * expert_stride(job, layouts)
    moe = experts if job.shape.moe_layers else np.ones_like(close)
    return (np.maximum(close, moe) <= node) & (layouts.data * close > node)


def _offload(job: Job, share: Array) -> Array:
    """The optimizer in the host: two transfers over the bus, and an update as fast as memory."""
    cluster, state = job.cluster, STATE_BYTES[job.states][2]
    bus = share * sum(SENT_BYTES[job.states]) / cluster.host_bandwidth
    update = share * (2 * state + 6) * cluster.host_gpus / cluster.host_memory_bandwidth
    return bus + update


def model_flops(job: Job) -> float:
    """Of a step, for the MFU: nothing that is computed again."""
    return job.batch_tokens * training_flops(job.shape, sequence=job.sequence)


def hardware_flops(job: Job, layouts: Layouts) -> Array:
    """Of a step, for the HFU: with what is computed again."""
    matrices = matrix_numbers(job.shape) - job.shape.vocab * job.shape.hidden
    once = 2 * matrices * job.batch_tokens
    tokens = layouts.micro_batch * job.sequence / layouts.context
    each = core_flops(job, layouts) * layouts.tensor / tokens  # of a token and layer
    scores = job.shape.layers * each * job.batch_tokens
    full = np.where(layouts.recompute == _FULL, once + scores, 0.0)
    selective = np.where(layouts.recompute == _SELECTIVE, scores, 0.0)
    return model_flops(job) + full + selective * (job.attention == "unfused")
