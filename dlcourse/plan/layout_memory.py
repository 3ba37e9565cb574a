"""Bytes of each category in the fullest rank, for many layouts at once.

    memory(job, layouts)["total"] <= job.cluster.memory

Two ranks can be the fullest: the first stage of a pipeline, which has most micro-batches under way
and the embedding, and the last one, which has the logits. Both are computed, the larger is given.

    parameters, gradients, optimizer_state   as in dlcourse.formulas.states, per group of ranks
    activations     what backward needs, of all micro-batches under way, and the layer at work
    logits          of the last stage, while the loss is computed
    buffers         ZeRO's gathered parameters and gradients under way
    other           CUDA context, communicators, and what the allocator cannot use: constants

A layer's activations are counted as Korthikanti et al. count them, "Reducing Activation
Recomputation in Large Transformer Models", MLSys 2023, section 4: with their model (unfused
attention, dropout) they are s b h (34 + 5 a s / h) bytes.
"""

from __future__ import annotations

import numpy as np

from dlcourse.formulas.bubbles import idle_over_ideal
from dlcourse.formulas.states import _DIVIDED_FROM, CATEGORIES
from dlcourse.plan.job import LOSS_BYTES, SENT_BYTES, STATE_BYTES, VALUE_BYTES, Array, Job
from dlcourse.plan.layouts import (
    OFFLOAD,
    RECOMPUTE,
    SCHEDULES,
    Layout,
    Layouts,
    stage_layers,
    vocab_ranks,
)
from dlcourse.plan.model_shape import layer_numbers, outside_numbers

MEMORY = (*CATEGORIES, "activations", "logits", "buffers", "other")
_FULL, _SELECTIVE = RECOMPUTE.index("full"), RECOMPUTE.index("selective")


def memory(job: Job, layouts: Layouts) -> dict[str, Array]:
    """Bytes by category in the fullest rank, "total", and "host" (of a node, where offloaded)."""
    at_first, at_last = (rank_memory(job, layouts, stage) for stage in ("first", "last"))
    fuller = at_last["total"] > at_first["total"]
    return {name: np.where(fuller, at_last[name], at_first[name]) for name in at_first}


def rank_memory(job: Job, layouts: Layouts, stage: str) -> dict[str, Array]:
    """The same of a rank of the "first" or the "last" stage, or of the second one ("middle")."""
    first, middle, last = stage_layers(job, layouts)
    if stage == "last":
        held = _last_in_flight(job, layouts)
        return _rank_memory(job, layouts, layers=last, in_flight=held, stage=stage)
    held = in_flight(job, layouts)
    if stage == "first":
        return _rank_memory(job, layouts, layers=first, in_flight=held, stage=stage)
    plain = layouts.schedule == SCHEDULES.index("1f1b")
    held = np.where(plain, np.minimum(held, layouts.pipeline - 1), held)
    return _rank_memory(job, layouts, layers=middle, in_flight=held, stage=stage)


def in_flight(job: Job, layouts: Layouts) -> Array:
    """Micro-batches whose activations the first stage holds, as shares of all its layers."""
    p, v, m = layouts.pipeline, layouts.chunks, layouts.micro_batches(job)
    one = np.minimum(p, m)
    interleaved = np.minimum(p * (1 + idle_over_ideal(p, p, num_chunks=v)), m)
    name = layouts.schedule
    held = np.where(name == SCHEDULES.index("gpipe"), m, one)
    return np.where(name == SCHEDULES.index("interleaved"), interleaved, held)


def _last_in_flight(job: Job, layouts: Layouts) -> Array:
    """The same in the last stage: one; with chunks those of its earlier chunks too."""
    p, v, m = layouts.pipeline, layouts.chunks, layouts.micro_batches(job)
    name = layouts.schedule
    held = np.where(name == SCHEDULES.index("interleaved"), np.minimum((p * (v - 1) + 1) / v, m), 1)
    held = np.where(name == SCHEDULES.index("zb-v"), np.minimum(p, m), held)
    return np.where(name == SCHEDULES.index("gpipe"), m, held)


def stage_numbers(job: Job, layouts: Layouts, layers: Array, stage: str) -> tuple[Array, Array]:
    """Numbers that a rank holds without ZeRO: all but experts, and experts.

    stage: "first" (embedding), "last" (output layer) or "middle"; where there is one it has both.
    """
    shape = job.shape
    moe = np.minimum(layers, shape.moe_layers)
    each = {kind: layer_numbers(shape, moe=kind == "moe") for kind in ("dense", "moe")}
    outside = outside_numbers(shape)
    matrix = outside["head"] or outside["embedding"]  # a tied one is in both ends of a pipeline
    both = outside["embedding"] + outside["head"]
    own = {"first": outside["embedding"], "middle": 0, "last": matrix}[stage]
    ends = np.where(layouts.pipeline == 1, both, own) / vocab_ranks(job, layouts)
    sharded = (layers - moe) * each["dense"]["sharded"] + moe * each["moe"]["sharded"]
    alone = {"first": outside["positions"], "middle": 0, "last": outside["norm"]}[stage]
    whole = ends + np.where(layouts.pipeline == 1, outside["norm"] + outside["positions"], alone)
    whole = whole + (layers - moe) * each["dense"]["replicated"]
    whole = whole + moe * each["moe"]["replicated"]
    return sharded / layouts.tensor + whole, moe * expert_numbers(job, layouts)


def expert_numbers(job: Job, layouts: Layouts) -> Array:
    """Numbers of one layer's experts in a rank without ZeRO."""
    shape = job.shape
    numbers = layer_numbers(shape, moe=True)["experts"]
    whole = shape.mlp_bias * shape.experts * shape.hidden  # added behind a sum over tensor ranks
    cut = layouts.tensor if job.cut_experts else 1.0
    found: Array = ((numbers - whole) / cut + whole) / layouts.expert
    return found


def unit_numbers(job: Job, layout: Layout, layers: int, stage: str) -> list[tuple[float, float]]:
    """The same, unit by unit as ZeRO sends them: what is outside the layers, and each layer.

    Of each all but experts, and experts. stage: "first", "middle" or "last". A stage of a pipeline
    is one unit.
    """
    shape, outside = job.shape, outside_numbers(job.shape)
    first, last = (layout.pipeline == 1 or stage == end for end in ("first", "last"))
    head = outside["head"]
    if last and not first:  # a tied matrix is in both ends
        head = head or outside["embedding"]
    ends = (first * outside["embedding"] + last * head) / (
        layout.tensor if job.vocab_parallel else 1
    )
    ends += first * outside["positions"] + last * outside["norm"]
    moe, units = int(min(layers, shape.moe_layers)), [(ends, 0.0)]
    experts = float(expert_numbers(job, Layouts.of([layout]))[0])
    for kind, count in (("dense", layers - moe), ("moe", moe)):
        each = layer_numbers(shape, moe=kind == "moe")
        numbers = each["sharded"] / layout.tensor + each["replicated"]
        units += [(numbers, experts if kind == "moe" else 0.0)] * count
    if layout.pipeline > 1:
        units = [(sum(dense for dense, _ in units), sum(experts for _, experts in units))]
    return units


def shard_numbers(job: Job, layouts: Layouts, layers: Array, stage: str) -> Array:
    """Numbers of one of ZeRO's shards in a rank: each unit is cut into equal parts, rounded up."""
    ranks, expert_ranks = layouts.data * layouts.context, layouts.expert_data(job)
    numbers, experts = stage_numbers(job, layouts, layers, stage)
    whole = np.ceil(numbers / ranks) + np.ceil(experts / expert_ranks)
    moe, found = np.minimum(layers, job.shape.moe_layers), 0 * whole
    rest = numbers
    for kind, count in (("dense", layers - moe), ("moe", moe)):
        own = layer_numbers(job.shape, moe=kind == "moe")
        each = own["sharded"] / layouts.tensor + own["replicated"]
        rest = rest - count * each
        part = np.ceil(expert_numbers(job, layouts) / expert_ranks) if kind == "moe" else 0.0
        found = found + count * (np.ceil(each / ranks) + part)
    return np.where(layouts.pipeline > 1, whole, found + np.ceil(rest / ranks))


def _rank_memory(
    job: Job, layouts: Layouts, *, layers: Array, in_flight: Array, stage: str
) -> dict[str, Array]:
    numbers, experts = stage_numbers(job, layouts, layers, stage)
    shard = shard_numbers(job, layouts, layers, stage)
    found: dict[str, Array] = {}
    for name, size in zip(CATEGORIES, STATE_BYTES[job.states], strict=True):
        divided = layouts.stage >= _DIVIDED_FROM[name]
        found[name] = size * np.where(divided, shard, numbers + experts)
    away = layouts.offload == OFFLOAD.index("optimizer")
    host = np.where(
        away, found["optimizer_state"] + 4 * own_share(job, layouts, numbers, experts), 0.0
    )
    found["optimizer_state"] = np.where(away, 0.0, found["optimizer_state"])

    tokens = layouts.micro_batch * job.sequence / layouts.context
    held, whole = layer_activations(job, layouts)
    full = layouts.recompute == _FULL
    stored = layers * in_flight * held + np.where(full, whole, 0.0)
    stream = layouts.tensor if job.sequence_parallel else np.ones_like(layouts.tensor)
    ends = tokens * 4 * job.shape.hidden / stream  # the last norm, or the embedding
    stored = stored + wide_values(job) * ends
    if not job.split_messages:  # what was sent to the next stage stays until its backward
        sent = in_flight * tokens * 2 * job.shape.hidden
        gone = np.logical_or(layouts.pipeline == 1, stage == "last")
        stored = stored + wide_values(job) * np.where(gone, 0.0, sent)
    # The loss works on logits before the first layer's backward begins, so not both are there
    has_head = np.logical_or(layouts.pipeline == 1, stage == "last")
    parts, each = vocab_ranks(job, layouts), LOSS_BYTES[job.loss][0]
    logits = tokens * job.shape.vocab / parts * np.where(parts > 1, min(each, 8), each)
    made, of_head = _gradients_made(job, layouts, tokens)
    logits = np.where(has_head, np.maximum(logits, of_head), 0.0)
    work = np.maximum(_at_work(job, layouts, tokens), made)
    found["activations"] = stored + np.where(work >= logits, work, 0.0)
    found["logits"] = np.where(work >= logits, 0.0, logits)
    found["buffers"] = _buffers(job, layouts)
    loose = found["activations"] + found["logits"] + found["buffers"]
    found["other"] = job.cluster.context_bytes + job.cluster.fragmentation * loose
    total: Array = np.sum([found[name] for name in MEMORY], axis=0)
    node = np.minimum(job.cluster.node, layouts.gpus)
    return found | {"total": total, "host": host * node}


def own_share(job: Job, layouts: Layouts, numbers: Array, experts: Array) -> Array:
    """Numbers that this rank's optimizer updates."""
    sharded = numbers / (layouts.data * layouts.context) + experts / layouts.expert_data(job)
    return np.where(layouts.stage >= 1, sharded, numbers + experts)


def layer_activations(job: Job, layouts: Layouts) -> tuple[Array, Array]:
    """Bytes that one layer keeps for backward of a micro-batch, and without any recomputation."""
    shape, t = job.shape, layouts.tensor
    tokens = layouts.micro_batch * job.sequence / layouts.context
    stream = t if job.sequence_parallel else np.ones_like(t)
    h = shape.hidden
    masks = 2 * h if shape.dropout else 0
    norms = 4 * h  # what each of two norms makes, and a product reads
    attention = 2 * (shape.query_width + shape.key_width + shape.kv_heads * shape.value_dim)
    attention += 2 * shape.output_width
    if shape.kv_rank:  # low-rank numbers, before and behind their norms; keys for all heads
        attention += 4 * (shape.q_rank + shape.kv_rank)
    scores = (5 if shape.dropout else 2) * shape.heads * job.sequence
    if job.attention != "unfused":
        scores = 4 * shape.heads  # of each row the log of its sum, in float32
    per_token = (4 * h + norms + masks) / stream + (attention + scores) / t
    per_token = per_token + router_bytes(job) / wide_values(job) / stream
    wide, product = mlp_activations(job, layouts)
    whole = tokens * (per_token + wide + product)
    dropped = scores / t if job.attention == "unfused" else norms / stream + product
    selective = tokens * (per_token + wide + product - dropped)
    inputs = tokens * 2 * h / stream
    held = np.where(layouts.recompute == _FULL, inputs, whole)
    held, wider = np.where(layouts.recompute == _SELECTIVE, selective, held), wide_values(job)
    return wider * held, wider * whole


def wide_values(job: Job) -> float:
    """How many times the 2 bytes that activations are counted in a value has."""
    return VALUE_BYTES[job.states] / 2


def router_bytes(job: Job) -> float:
    """Bytes a token that a router keeps: a score for each expert, and what softmax makes of it.

    In float32 whatever the rest is in. With thousands of experts as much as an expert's own.
    """
    return 8 * job.shape.experts if job.shape.moe_layers else 0


def mlp_activations(job: Job, layouts: Layouts) -> tuple[Array, Array]:
    """Bytes a token that an MLP keeps: of what its products make, of what others make of that."""
    shape, t = job.shape, layouts.tensor
    eager = 2 if shape.gated and job.kernels == "eager" else 0  # silu's result, before the gate
    dense = shape.ffn if shape.layers > shape.moe_layers or not shape.moe_layers else 0
    width = np.maximum(dense, shape.shared_ffn if shape.moe_layers else 0) / t
    wide, product = 2 * shape.ups * width, (2 + eager) * width
    if shape.moe_layers:
        stream = t if job.sequence_parallel else np.ones_like(t)
        rows = shape.top_k * job.imbalance / stream  # tokens of a rank, each for top_k experts
        inside = shape.expert_ffn / t if job.cut_experts else shape.expert_ffn
        wide = 2 * shape.ups * shape.shared_ffn / t + rows * 2 * shape.ups * inside
        # What arrived, and what goes back; operator by operator also what is weighed and summed
        wide = wide + rows * (6 if job.kernels == "eager" else 4) * shape.hidden
        product = (2 + eager) * (shape.shared_ffn / t + rows * inside)
    return wide, product


def _at_work(job: Job, layouts: Layouts, tokens: Array) -> Array:
    """Gradients of one layer's widest tensors, and the gathered input of a product."""
    wide, product = mlp_activations(job, layouts)
    gathered = np.where(layouts.tensor > 1, 2 * job.shape.hidden, 0) * job.sequence_parallel
    work = tokens * (wide + product / 2 + 2 * job.shape.hidden + gathered)
    return wide_values(job) * work


def _gradients_made(job: Job, layouts: Layouts, tokens: Array) -> tuple[Array, Array]:
    """What is there while gradients of matrices are made, operator by operator: a layer's, where
    they count for more than its activations, and the output matrix's, with the logits' own.

    With few tokens they are the highest moment. Fused kernels add to the sum that is there; a
    layer's gradients under ZeRO, from stage 2 on, are buffers.
    """
    shape, t, value = job.shape, layouts.tensor, VALUE_BYTES[job.states]
    parts = vocab_ranks(job, layouts)
    head = value * shape.vocab / parts * (tokens + shape.hidden)
    wide, product = mlp_activations(job, layouts)
    layer = _at_work(job, layouts, tokens) + value * shape.hidden * shape.ffn / t
    if shape.moe_layers:  # of each expert its own, and the first stack of them; the rest has gone
        inside = shape.expert_ffn / (t if job.cut_experts else 1)
        stacks = (shape.ups + 2) * shape.experts / layouts.expert * shape.hidden * inside
        rows = shape.top_k * job.imbalance * shape.hidden
        layer = value * stacks + value * tokens * (rows - (wide + product) / 2)
    eager = job.kernels == "eager"
    return np.where(np.logical_and(eager, layouts.stage < 2), layer, 0.0), eager * head


def layer_sizes(job: Job, layouts: Layouts) -> tuple[Array, Array]:
    """Numbers of one layer in a rank without ZeRO: all but experts, and experts."""
    each = layer_numbers(job.shape, moe=bool(job.shape.moe_layers))
    numbers = each["sharded"] / layouts.tensor + each["replicated"]
    return numbers, expert_numbers(job, layouts) * bool(job.shape.moe_layers)


def _buffers(job: Job, layouts: Layouts) -> Array:
    """Stage 3: what is outside the layers and two of them gathered, two layers' gradients under
    way; stage 2: those alone. As ``dlcourse.formulas.memory.predict_peak`` has it."""
    value, sent = SENT_BYTES[job.states]
    numbers, experts = layer_sizes(job, layouts)
    layer = numbers + experts
    outside = outside_numbers(job.shape)
    ends = np.where(layouts.pipeline == 1, outside["embedding"] + outside["head"], 0)
    ends = np.where(layouts.pipeline > 1, outside["embedding"], ends) / vocab_ranks(job, layouts)
    gathered = np.where(layouts.stage == 3, value * (ends + 2 * layer), 0.0)
    under_way = np.where(layouts.stage >= 2, 2 * sent * layer, 0.0)
    return gathered + under_way
