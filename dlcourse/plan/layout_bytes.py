"""What a rank sends in one step of a layout: each kind of collective, its ranks and its bytes.

    for message in layout_bytes(job, layout): print(message.side, message.op, message.nbytes)

Bytes are those of the buffers, as ``dlcourse.formulas.traffic`` counts them; ``sent`` is what goes
to others. Counted are activations, tokens, gradients and parameters. What a program sends beside
them to keep its books (losses, how many tokens come) is a few numbers, and not in it.

Held against the ledger of real and of fake ranks in ``tests/test_planner_ranks.py``.
Sources: Shoeybi et al., "Megatron-LM", 2019, section 3 (four all-reduces a layer); Korthikanti et
al., MLSys 2023, section 4.2.2 (sequence parallelism); Rajbhandari et al., "ZeRO", SC 2020, 7.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcourse.formulas.traffic import distinct_ranks, wire_bytes
from dlcourse.plan.job import SENT_BYTES, VALUE_BYTES, Job
from dlcourse.plan.layout_memory import unit_numbers
from dlcourse.plan.layouts import Layout, Layouts, stage_layers


@dataclass(frozen=True)
class Message:
    """All collectives of one kind in a rank and step.

    Attributes:
        side: whose ranks: "tensor", "context", "pipeline", "expert", "data", "expert_data".
        op: torch's name of it.
        what: "activations", "loss", "tokens", "gradients", "parameters".
        ranks: of the group.
        nbytes: of all buffers together.
    """

    side: str
    op: str
    what: str
    ranks: int
    nbytes: float

    @property
    def sent(self) -> float:
        """Bytes that go to other ranks."""
        return wire_bytes(self.op, self.nbytes, self.ranks)


def layout_bytes(job: Job, layout: Layout, *, stage: str = "first") -> list[Message]:
    """Messages of a rank in one step; none to itself.

    stage: of the pipeline: "first", "middle" or "last".

    Raises:
        ValueError: an unknown stage.
    """
    if stage not in ("first", "middle", "last"):
        raise ValueError(f"stage={stage!r}: give 'first', 'middle' or 'last'")
    one = Layouts.of([layout])
    layers = dict(zip(("first", "middle", "last"), stage_layers(job, one), strict=True))
    count = int(layers[stage][0])
    found = [
        *_tensor(job, layout, count, stage),
        *_context(job, layout, count),
        *_pipeline(job, layout, stage),
        *_expert(job, layout, count),
        *_data(job, layout, one, count, stage),
    ]
    return [message for message in found if message.ranks > 1 and message.nbytes]


def _tokens(job: Job, layout: Layout) -> float:
    """Of a rank in a step, all micro-batches together."""
    return job.batch_tokens / layout.data / layout.context


def _tensor(job: Job, layout: Layout, layers: int, stage: str) -> list[Message]:
    shape, t, tokens = job.shape, layout.tensor, _tokens(job, layout)
    stream = tokens * shape.hidden * VALUE_BYTES[job.states]
    moe = min(layers, shape.moe_layers)
    pairs = 2 * (layers - moe) + (2 if shape.shared_ffn else 1) * moe  # attention's, and an MLP's
    again = layout.recompute == "full"
    first = stage == "first" or layout.pipeline == 1
    last = stage == "last" or layout.pipeline == 1
    ends = (first + last) * job.vocab_parallel
    loss = Message("tensor", "all_reduce", "loss", t, last * job.vocab_parallel * 3 * 4 * tokens)
    if not job.sequence_parallel:  # one in forward, one in backward
        calls = pairs * (2 + again) + ends
        return [Message("tensor", "all_reduce", "activations", t, calls * stream), loss]
    # All-gather in front and reduce-scatter behind, the other way round in backward, where the
    # input is gathered once more for the gradient of the weights
    gathers = pairs * (3 + again) + (first + 2 * last) * job.vocab_parallel
    scatters = pairs * (2 + again) + ends
    return [
        Message("tensor", "all_gather", "activations", t, gathers * stream),
        Message("tensor", "reduce_scatter", "activations", t, scatters * stream),
        loss,
    ]


def _context(job: Job, layout: Layout, layers: int) -> list[Message]:
    """Keys and values go round once in forward, in backward with their gradients."""
    shape, c = job.shape, layout.context
    width = shape.key_width + shape.kv_heads * shape.value_dim
    one = _tokens(job, layout) * width / min(layout.tensor, shape.kv_heads)
    again = layout.recompute == "full"
    nbytes = layers * (c - 1) * (3 + again) * one * VALUE_BYTES[job.states]
    return [Message("context", op, "activations", c, nbytes) for op in ("send", "recv")]


def _pipeline(job: Job, layout: Layout, stage: str) -> list[Message]:
    """Activations forward, gradients back; each chunk has neighbours but for the model's ends."""
    p, v = layout.pipeline, layout.chunks
    stream = _tokens(job, layout) * job.shape.hidden * VALUE_BYTES[job.states]
    if job.split_messages:  # each tensor rank sends a part
        stream /= layout.tensor
    crossings = 2 * v - (stage != "middle")
    if layout.schedule == "zb-v":  # the two chunks of an end rank, or one of them, have one
        crossings = 4 if stage == "middle" else 2
    found = [Message("pipeline", op, "activations", p, crossings * stream) for op in _BOTH]
    if job.shape.tied and stage != "middle":  # both ends have the matrix, and add its gradients
        parts = layout.tensor if job.vocab_parallel else 1
        matrix = job.shape.vocab * job.shape.hidden * SENT_BYTES[job.states][1] / parts
        found += [Message("pipeline", op, "gradients", p, matrix) for op in _BOTH]
    return found


_BOTH = ("send", "recv")


def _expert(job: Job, layout: Layout, layers: int) -> list[Message]:
    """To the experts and back, and both again in backward."""
    shape, e = job.shape, layout.expert
    moe = min(layers, shape.moe_layers)
    found = _cut_experts(job, layout, moe) if job.cut_experts else []
    if not moe or e == 1:
        return found
    copies = float(shape.top_k)
    if job.dispatch == "once":  # a token goes to a rank once, whoever wants it there
        copies = distinct_ranks(shape.experts, shape.top_k, e)
    # Under tensor parallelism each rank brings its part of the tokens, or all have the same
    rows = _tokens(job, layout) / (1 if job.cut_experts else layout.tensor) * copies
    trips = 4 + 2 * (layout.recompute == "full")
    nbytes = moe * trips * rows * shape.hidden * VALUE_BYTES[job.states]
    return [*found, Message("expert", "all_to_all", "tokens", e, nbytes)]


def _cut_experts(job: Job, layout: Layout, moe: int) -> list[Message]:
    """Rows summed behind the experts, in backward in front of them, and the biases' gradients."""
    shape, value = job.shape, VALUE_BYTES[job.states]
    again = layout.recompute == "full"
    rows = (2 + again) * _tokens(job, layout) * shape.top_k * shape.hidden * value
    m = job.sequences // (layout.data * layout.micro_batch)
    biases = m * shape.mlp_bias * shape.experts / layout.expert * shape.hidden * value
    return [Message("tensor", "all_reduce", "tokens", layout.tensor, moe * (rows + biases))]


def _data(job: Job, layout: Layout, one: Layouts, layers: int, stage: str) -> list[Message]:
    m = job.sequences // (layout.data * layout.micro_batch)
    value, sent = SENT_BYTES[job.states]
    size, experts_size = layout.data * layout.context, int(one.expert_data(job)[0])
    units = unit_numbers(job, layout, layers, stage)
    if layout.stage == 0:
        dense, experts = (sum(unit[kind] for unit in units) for kind in (0, 1))
        return [
            Message("data", "all_reduce", "gradients", size, sent * dense),
            Message("expert_data", "all_reduce", "gradients", experts_size, sent * experts),
        ]
    # Each unit is cut into equal parts
    dense = sum(-(-n // size) * size for n, _ in units)
    experts = sum(-(-n // experts_size) * experts_size for _, n in units)
    reduces = m if layout.stage >= 2 else 1
    gathers = 2 * m if layout.stage == 3 else 1
    return [
        message
        for side, ranks, numbers in (("data", size, dense), ("expert_data", experts_size, experts))
        for message in (
            Message(side, "reduce_scatter", "gradients", ranks, reduces * sent * numbers),
            Message(side, "all_gather", "parameters", ranks, gathers * value * numbers),
        )
    ]
