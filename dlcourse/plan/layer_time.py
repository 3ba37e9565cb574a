"""Seconds of one layer for one micro-batch in one rank: forward, backward, and again.

Operator by operator. Two things are taken apart: what the GPU computes, and what it waits for:
collectives of tensor, context and expert parallelism that nothing hides. Of tensor parallelism's
collectives those of backward that belong to a layer's first product run beside the gradients of its
weights, as in Megatron; with ``overlap_tensor`` all of them run beside products.

A layer whose kernels are shorter than the host needs to start them takes the host's time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcourse.formulas.traffic import share_of_others
from dlcourse.plan.cluster import Cluster
from dlcourse.plan.communication import (
    all_reduce_seconds,
    all_to_all_seconds,
    disturbance,
    gather_seconds,
    members_of_node,
    send_seconds,
)
from dlcourse.plan.job import LOSS_BYTES, SUM_APART_BYTES, SUM_BYTES, VALUE_BYTES, Array, Job
from dlcourse.plan.kernels import flash_seconds, grouped_seconds, linear_seconds, stream_seconds
from dlcourse.plan.layouts import Layouts, vocab_ranks
from dlcourse.plan.model_shape import ModelShape

# Operators that the host starts in one layer's forward, counted in Megatron-Core's and in a plain
# layer; its backward has about as many. "experts" is the router, sorting and two exchanges.
HOST_OPERATORS = {"fused": 18, "eager": 30, "tensor": 8, "experts": 30, "gather": 8}
# And for each expert of the rank: two products, each a call that looks for its kernel and starts it
HOST_EACH_EXPERT = 4


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer and micro-batch.

    Attributes:
        forward, backward: computing.
        again: of the operators that selective recomputation does once more.
        wait_forward, wait_backward: exposed communication.
        hidden: what communication beside computing costs it, forward and backward together.
    """

    forward: Array
    backward: Array
    again: Array
    wait_forward: Array
    wait_backward: Array
    hidden: Array


def layer_time(job: Job, layouts: Layouts, *, moe: bool) -> LayerTime:
    """Of a dense layer, or of one with experts."""
    shape, cluster, t = job.shape, job.cluster, layouts.tensor
    tokens = layouts.micro_batch * job.sequence / layouts.context
    attention = _attention_products(job, layouts, tokens)
    mlp = _mlp_products(job, layouts, tokens, moe)
    core_forward, core_backward, core_again = _attention_core(job, layouts)
    streams_forward, streams_backward, streams_again = _streams(job, layouts, tokens, moe)
    products = [attention[i] + mlp[i] for i in range(3)]
    forward = products[0] + core_forward + streams_forward
    backward = products[1] + products[2] + core_backward + streams_backward
    experts = HOST_OPERATORS["experts"] + HOST_EACH_EXPERT * shape.experts / layouts.expert
    operators = HOST_OPERATORS[job.kernels] + (experts if moe else 0)
    operators = operators + np.where(t > 1, HOST_OPERATORS["tensor"], 0)
    operators = operators + np.where(layouts.stage == 3, HOST_OPERATORS["gather"], 0)
    host = operators * cluster.host_seconds
    again = core_again if job.attention == "unfused" else streams_again

    one = _tensor_collective(job, layouts, tokens)
    shared = shape.shared_ffn > 0 or not moe
    count = 2 if shared else 1  # of a pair in attention, and a pair in a dense MLP
    wait_forward = 2 * count * one
    beside = np.minimum(count * one, products[2]) if job.overlap_backward else 0 * one
    wait_backward = 2 * count * one - beside
    hidden = beside + (count * one if job.sequence_parallel else 0 * one)  # inputs gathered again
    if job.overlap_tensor:  # a product in t pieces, each beside another's collective, but for one
        forward_hidden = np.minimum(wait_forward, share_of_others(t) * products[0])
        backward_hidden = np.minimum(wait_backward, share_of_others(t) * products[1])
        wait_forward, wait_backward = wait_forward - forward_hidden, wait_backward - backward_hidden
        hidden = hidden + forward_hidden + backward_hidden
    ring_forward, ring_backward = _context_ring(job, layouts, core_forward, core_backward)
    exchange = _exchange(job, layouts, tokens) if moe else np.zeros_like(t)
    rows_added, biases_added = _cut_experts(job, layouts, tokens) if moe else (0 * one, 0 * one)
    forward = np.maximum(forward, host - wait_forward)
    if moe:  # numbers of tokens go to the host before they are sent: nothing is queued behind
        forward = forward + experts * cluster.host_seconds
    return LayerTime(
        forward,
        np.maximum(backward, host - wait_backward),
        again,
        wait_forward + ring_forward + 2 * exchange + rows_added,
        wait_backward + ring_backward + 2 * exchange + rows_added + biases_added,
        hidden * disturbance(cluster, t, np.ones_like(t)),
    )


def _linear(
    job: Job, tokens: Array, out: Array | int | float, into: Array | int | float, **more: Any
) -> tuple[Array, Array, Array]:
    return linear_seconds(job.cluster, tokens, out, into, **_sums(job), **more)


def _sums(job: Job) -> dict[str, int]:
    return {"sums": SUM_BYTES[job.states], "apart": SUM_APART_BYTES[job.states]}


def _sum(*parts: tuple[Array, Array, Array]) -> list[Array]:
    return [np.sum([part[i] for part in parts], axis=0) for i in range(3)]


def _attention_products(job: Job, layouts: Layouts, tokens: Array) -> list[Array]:
    shape, t = job.shape, layouts.tensor
    h, q, o = shape.hidden, shape.query_width, shape.output_width
    result = _linear(job, tokens, h, o / t)
    if not shape.kv_rank:
        kv = (shape.key_width + shape.kv_heads * shape.value_dim) / np.minimum(t, shape.kv_heads)
        return _sum(_linear(job, tokens, q / t + kv, h), result)
    nope = shape.head_dim - shape.rope_dim
    parts = [result, _linear(job, tokens, shape.kv_rank + shape.rope_dim, h)]
    wide = shape.heads * (nope + shape.value_dim) / t
    parts.append(_linear(job, tokens, wide, shape.kv_rank))
    if shape.q_rank:
        parts.append(_linear(job, tokens, shape.q_rank, h))
    parts.append(_linear(job, tokens, q / t, shape.q_rank or h))
    return _sum(*parts)


def _mlp_products(job: Job, layouts: Layouts, tokens: Array, moe: bool) -> list[Array]:
    shape, t = job.shape, layouts.tensor

    def mlp(rows: Array, width: Array) -> list[Array]:
        up = _linear(job, rows, shape.ups * width, shape.hidden)
        return _sum(up, _linear(job, rows, shape.hidden, width))

    if not moe:
        return mlp(tokens, shape.ffn / t)
    local = shape.experts / layouts.expert
    rows = expert_rows(job, layouts, tokens) / local
    share = t if job.cut_experts else 1.0  # of an expert's width, and of the ranks with a token
    width, sums = shape.expert_ffn / share, _sums(job)
    up = grouped_seconds(job.cluster, rows, shape.ups * width, shape.hidden, local, **sums)
    down = grouped_seconds(job.cluster, rows, shape.hidden, width, local, **sums)
    found = _sum(up, down)
    router = _linear(job, tokens * share / t, shape.experts, shape.hidden)
    found = [found[i] + router[i] for i in range(3)]
    if shape.shared_ffn:
        shared = mlp(tokens, shape.shared_ffn / t)
        found = [found[i] + shared[i] for i in range(3)]
    return found


def expert_rows(job: Job, layouts: Layouts, tokens: Array) -> Array:
    """Tokens, counted for each expert that they go to, that the busiest rank's experts work on.

    Each tensor rank brings a part of the tokens; where experts are cut, all have the same.
    """
    mine = tokens if job.cut_experts else tokens / layouts.tensor
    return mine * job.shape.top_k * job.imbalance


def core_flops(job: Job, layouts: Layouts) -> Array:
    """Of the two products of attention's forward in a rank, nothing masked."""
    shape = job.shape
    tokens = layouts.micro_batch * job.sequence / layouts.context
    widths = (shape.query_width + shape.output_width) / layouts.tensor
    return 2 * tokens * job.sequence * widths


def _attention_core(job: Job, layouts: Layouts) -> tuple[Array, Array, Array]:
    """Forward, backward, and once more the part that selective recomputation repeats."""
    cluster, flops = job.cluster, core_flops(job, layouts)
    if job.attention != "unfused":
        rows = layouts.micro_batch * job.sequence / layouts.context
        blocks = np.ceil(rows / 128) * job.shape.heads / layouts.tensor
        forward, backward = flash_seconds(cluster, flops / 2, blocks, kind=job.attention)
        return forward, backward, np.zeros_like(forward)
    # Scores of all heads in 16 bits: products write and read them, softmax and dropout between
    # read and write them again (the mask is half a pass). Nothing of the masked half is saved.
    tokens = layouts.micro_batch * job.sequence / layouts.context
    scores = 2 * job.shape.heads / layouts.tensor * tokens * job.sequence
    drop = 2.5 if job.shape.dropout else 0
    speed = cluster.sustained_matrix
    forward = flops / speed + stream_seconds(cluster, (4 + drop) * scores, kernels=5)
    backward = 2 * flops / speed + stream_seconds(cluster, (7 + drop) * scores, kernels=8)
    return forward, backward, forward


def _streams(job: Job, layouts: Layouts, tokens: Array, moe: bool) -> tuple[Array, Array, Array]:
    """Norms, residual sums, rotations, activation functions: forward, backward, once more.

    Counted in reads and writes of 2 bytes: a norm 2 and 4 in backward (with the residual's
    gradient added), a sum 3 and none (1.5 and 2.5 more with dropout), a rotation and biases of
    queries and keys 2 and 2. Eager kernels read and write more often: a norm in float32 by
    operators about 4 times as much, a gated activation 5 instead of 3 widths.
    """
    shape, cluster, t = job.shape, job.cluster, layouts.tensor
    rows = tokens / (t if job.sequence_parallel else 1)
    eager = job.kernels == "eager"
    norm = 2 * rows * 2 * shape.hidden * 2 * (4 if eager and not shape.norm_bias else 1)
    drop = (1.5, 2.5) if shape.dropout else (0, 0)
    residual = 2 * rows * 2 * shape.hidden
    heads = (shape.query_width + shape.key_width) / t
    rotate = tokens * 2 * heads * (6 if eager else 2)
    width = (shape.ffn if not moe else shape.shared_ffn) / t
    widths = tokens * 2 * width
    if moe:
        part = shape.expert_ffn / (t if job.cut_experts else 1.0)
        widths = widths + expert_rows(job, layouts, tokens) * 2 * part
    act = ((5, 8) if eager else (3, 5)) if shape.gated else (2, 3)
    forward = norm + residual * (3 + drop[0]) + rotate + widths * act[0]
    backward = 2 * norm + residual * (2 + drop[1]) + rotate + widths * act[1]
    kernels = 16 if eager else 8
    seconds = stream_seconds(cluster, forward, kernels=kernels)
    seconds_backward = stream_seconds(cluster, backward, kernels=kernels + 4)
    again = stream_seconds(cluster, norm + widths * act[0], kernels=3)
    if moe:  # permute, and weigh and sum: each reads and writes a row for each expert
        moved = expert_rows(job, layouts, tokens) * 2 * shape.hidden * 4
        each = stream_seconds(cluster, moved, kernels=8, efficiency=cluster.permute_efficiency)
        seconds, seconds_backward = seconds + each, seconds_backward + each
    return seconds, seconds_backward, again


def _tensor_collective(job: Job, layouts: Layouts, tokens: Array) -> Array:
    """Of one all-gather or reduce-scatter of the stream; an all-reduce is one of each."""
    nbytes = tokens * 2 * job.shape.hidden
    return gather_seconds(job.cluster, nbytes, layouts.tensor, np.ones_like(tokens))


def _context_ring(
    job: Job, layouts: Layouts, forward: Array, backward: Array
) -> tuple[Array, Array]:
    """Ring attention: keys and values go round once, in backward with their gradients.

    Each step hides behind its part of attention. What it makes is joined with what is there, in
    float32: read, read and written, and a scale for each row; in backward gradients are added.
    """
    shape, c, t = job.shape, layouts.context, layouts.tensor
    width = (shape.key_width + shape.kv_heads * shape.value_dim) / t
    rows = layouts.micro_batch * job.sequence / c
    step = send_seconds(job.cluster, rows * 2 * width, t)
    joined = stream_seconds(job.cluster, rows * 12 * shape.output_width / t, kernels=5)
    added = stream_seconds(job.cluster, rows * 12 * (width + shape.query_width / t), kernels=5)
    exposed = joined + np.maximum(0.0, step - forward / c)
    exposed_backward = added + np.maximum(0.0, 2 * step - backward / c)
    return np.where(c > 1, (c - 1) * exposed, 0.0), np.where(c > 1, (c - 1) * exposed_backward, 0.0)


def _exchange(job: Job, layouts: Layouts, tokens: Array) -> Array:
    """One exchange of tokens with the ranks of their experts, or back; routing is balanced.

    ``dispatch="plain"``: an all-to-all, a token once for each of its experts. "once": as DeepEP
    does it, once for each node over the network and once for each rank inside.
    """
    shape, cluster, e = job.shape, job.cluster, layouts.expert
    stride = expert_stride(job, layouts)
    row = tokens / layouts.tensor * stride * 2 * shape.hidden
    if job.dispatch == "plain":
        return all_to_all_seconds(cluster, row * shape.top_k, e, stride)
    nodes = np.ceil(e / members_of_node(cluster, e, stride))
    ranks = e * (1 - (1 - 1 / e) ** shape.top_k)  # that one token goes to, on average
    reached = nodes * (1 - (1 - 1 / nodes) ** shape.top_k)
    card = cluster.network_bandwidth * cluster.network_efficiency
    link = cluster.node_bandwidth * cluster.all_to_all_efficiency
    outside = row * reached * share_of_others(nodes) / card
    inside = row * ranks * share_of_others(e) / link
    start = all_to_all_seconds(cluster, 0 * row, e, stride)
    return np.where(e > 1, np.maximum(outside, inside) + start, 0.0)


def expert_stride(job: Job, layouts: Layouts) -> Array:
    """How far the next rank of an expert group is: tensor ranks are in between that share one."""
    return layouts.tensor if job.cut_experts else np.ones_like(layouts.tensor)


def _cut_experts(job: Job, layouts: Layouts, tokens: Array) -> tuple[Array, Array]:
    """All-reduces over the tensor ranks that share each expert, which nothing hides.

    Of the rows, once behind the experts in forward and once before them in backward; and in
    backward of the output biases' gradients, since each rank adds its share of a bias.

    Source: ``dlcourse/parallel/expert_tensor.py``; ``layout_bytes`` counts the same messages.
    """
    shape, value = job.shape, VALUE_BYTES[job.states]
    if not job.cut_experts:
        return np.zeros_like(tokens), np.zeros_like(tokens)
    biases = shape.mlp_bias * shape.experts / layouts.expert * np.ones_like(tokens)
    rows, biases = (
        all_reduce_seconds(
            job.cluster, each * shape.hidden * value, layouts.tensor, np.ones_like(tokens)
        )
        for each in (expert_rows(job, layouts, tokens), biases)
    )
    return rows, biases if shape.mlp_bias else np.zeros_like(tokens)


def ends_time(job: Job, layouts: Layouts) -> tuple[Array, Array, Array]:
    """Of what is outside the layers: output layer with loss, forward and backward; embedding."""
    shape, cluster, t = job.shape, job.cluster, vocab_ranks(job, layouts)
    tokens = layouts.micro_batch * job.sequence / layouts.context
    forward, inputs, weights = _linear(job, tokens, shape.vocab / t, shape.hidden)
    logits = tokens * shape.vocab / t
    _, moved, moved_backward = LOSS_BYTES[job.loss]
    forward = forward + stream_seconds(cluster, logits * moved, kernels=6)
    backward = inputs + weights + stream_seconds(cluster, logits * moved_backward, kernels=3)
    embedding = stream_seconds(cluster, tokens * shape.hidden * 2 * 6 / t, kernels=6)
    return forward, backward, embedding


def ends_wait(job: Job, layouts: Layouts) -> tuple[Array, Array]:
    """Of a micro-batch, what tensor ranks wait for at the model's ends: embedding, output layer.

    Where the vocabulary is divided, the embedding's rows are summed, and so are the gradients of
    the output layer's input (beside those of its weights, as a layer's first product has it).
    With sequence parallelism both are halves of it: one in forward, one in backward. The loss sums
    three numbers for each token.

    Source: Shoeybi et al., "Megatron-LM", 2019, section 3; ``layout_bytes`` counts the same.
    """
    tokens = layouts.micro_batch * job.sequence / layouts.context
    if not job.vocab_parallel:
        return np.zeros_like(tokens), np.zeros_like(tokens)
    t = layouts.tensor
    pair = 2 * _tensor_collective(job, layouts, tokens)
    loss = 3 * all_reduce_seconds(job.cluster, 4 * tokens, t, np.ones_like(t))
    backward = pair / 2 if job.sequence_parallel else pair
    weights = _linear(job, tokens, job.shape.vocab / t, job.shape.hidden)[2]
    beside = np.minimum(backward, weights) if job.overlap_backward else 0 * pair
    return pair, pair + loss - beside


def peak_share(shape: ModelShape, cluster: Cluster, flops: float, seconds: float) -> float:
    """FLOPs in a time as a share of the peak."""
    return flops / seconds / cluster.peak
