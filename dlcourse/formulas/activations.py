"""How many bytes of activations a training step of our GPT needs, by formula.

Operator by operator, what autograd stores for one layer. Two things make it differ from the formula
that everybody quotes, s b h (34 + 5 a s / h) bytes: in float32 we store 4 bytes a value and not 2,
and the fused attention keeps no scores, the 5 a s / h, but one number for each row of them.

Shape letters as in ``sizes.py``. Arguments of all functions here: ``micro_batch`` sequences of
``block`` tokens, and what they train.

Source of the quoted formula: Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", MLSys 2023, section 4.1, https://arxiv.org/abs/2205.05198. Ours is counted in
the same way, with the operators of this model.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlcourse.formulas.checkpoint_segments import check_segments
from dlcourse.formulas.parameters import matrix_parameters
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.states import check_precision_name, value_bytes

# Bytes that a layer stores for a token, as multiples of the width C, by the operator whose backward
# reads them: in float32, under autocast, with all in 16 bits
BYTES_KEPT = {
    "attention_norm": (4, 4, 2),  # its input, the residual stream
    "q, k, v": (4, 6, 2),  # one input for all three; autocast converts and keeps it three times
    "attention": (12, 6, 6),  # q, k and v
    "proj": (4, 2, 2),  # attention's result, which attention's own backward reads as well
    "mlp_norm": (4, 4, 2),
    "up": (4, 2, 2),
    "gelu": (16, 8, 8),  # 4 C wide
    "down": (16, 8, 8),
}


def layer_terms(
    config: GPTConfig, *, micro_batch: int, block: int, precision: str = "float32"
) -> dict[str, int]:
    """Bytes that one layer stores for backward, by the operator that reads them there."""
    check_precision_name(precision)
    column = {"float32": 0, "autocast": 1}.get(precision, 2)
    each = {name: kept[column] * config.n_embd for name, kept in BYTES_KEPT.items()}
    for norm in ("attention_norm", "mlp_norm"):
        each[norm] += 2 * value_bytes(precision)  # a mean and a scale
    each["attention"] += 4 * config.n_head  # of each row of scores the log of its sum, in float32
    return {name: micro_batch * block * size for name, size in each.items()}


def layer_bytes(
    config: GPTConfig, *, micro_batch: int, block: int, precision: str = "float32"
) -> int:
    """What one layer stores: 4 B T (16 C + H + 4) in float32."""
    terms = layer_terms(config, micro_batch=micro_batch, block=block, precision=precision)
    return sum(terms.values())


def quoted_terms(config: GPTConfig, *, micro_batch: int, block: int) -> dict[str, float]:
    """The published formula by the same operators: 2 bytes a value, dropout masks, all scores.

    Together s b h (34 + 5 a s / h): 32 of the 34 are 16 values of 2 bytes, as here; two are masks.
    """
    s, b, h, a = block, micro_batch, config.n_embd, config.n_head
    each = {  # bytes for each of the s b h numbers of the stream
        "attention_norm": 2,
        "q, k, v": 2,
        "attention": 6 + 5 * a * s / h,  # softmax's result 2, its mask 1, what dropout leaves 2
        "proj": 2 + 1,  # and the mask of a dropout
        "mlp_norm": 2,
        "up": 2,
        "gelu": 8,
        "down": 8 + 1,
    }
    return {name: s * b * h * n for name, n in each.items()}


def stream_bytes(config: GPTConfig, *, micro_batch: int, block: int) -> int:
    """B T C numbers in float32: the residual stream, what goes from layer to layer."""
    return 4 * micro_batch * block * config.n_embd


def loss_bytes(config: GPTConfig, *, micro_batch: int, block: int) -> int:
    """What the last norm keeps and the loss works on, in float32, when backward begins.

    The norm's input and result, a mean and a scale; log-softmax, and a gradient in and out.
    """
    return 4 * micro_batch * block * (2 * config.n_embd + 2 + 3 * config.vocab_size)


def mlp_backward_bytes(config: GPTConfig, *, micro_batch: int, block: int) -> int:
    """What the backward of an MLP holds, in float32: the highest of a layer's.

    Two gradients, of the stream and of gelu's result (4 C wide); and the one of a weight.
    """
    stream = stream_bytes(config, micro_batch=micro_batch, block=block)
    return stream + 4 * stream + 4 * 4 * config.n_embd**2


def weight_copy_bytes(config: GPTConfig) -> int:
    """Of the 16-bit copies of matrices that autocast makes, alive until forward is over."""
    return 2 * matrix_parameters(config)


def activation_moments(
    config: GPTConfig,
    *,
    micro_batch: int,
    block: int,
    precision: str = "float32",
    segments: Sequence[int] = (),
    early_stop: bool = False,
) -> dict[str, int]:
    """Bytes of activations at the moments that may be the highest of a step.

    "loss": all is stored, and the loss works on logits. "head": its gradient is being made.
    "layers": the last layers, which no checkpoint covers. "segment i": recomputed, and in the
    middle of its backward. "embedding": the end. "forward": its end, where autocast still has the
    16-bit copies of all matrices. The largest is the peak.

    Args:
        segments: how many layers each checkpoint covers, see ``checkpoint_segments.py``.
        early_stop: the second forward ends at the last value that backward reads, as torch's
            does: it does not make the segment's result again.

    Raises:
        ValueError: ``segments`` do not fit ``config.n_layer``; under autocast, segments that are
            not of one layer each with ``early_stop``: no lesson needs others.
    """
    check_segments(segments, config.n_layer)
    batch = dict(micro_batch=micro_batch, block=block)
    if precision == "autocast":
        return _autocast_moments(config, segments, early_stop, **batch)
    C, V, tokens = config.n_embd, config.vocab_size, micro_batch * block
    stream, work = stream_bytes(config, **batch), mlp_backward_bytes(config, **batch)
    layer = layer_bytes(config, micro_batch=micro_batch, block=block)
    stored = len(segments) * stream + (config.n_layer - sum(segments)) * layer
    moments = {
        "loss": stored + loss_bytes(config, **batch),
        "head": stored + 4 * tokens * (2 * C + 2 + V) + stream + 4 * V * C,
        "embedding": stream + 4 * V * C,
    }
    if sum(segments) < config.n_layer:
        moments["layers"] = stored + work
    for i, size in enumerate(segments):
        result = 0 if early_stop else stream
        moments[f"segment {i}"] = i * stream + size * layer + result + work
    if value_bytes(precision) == 4:
        return moments
    # Half of everything, but for attention's numbers for its rows of scores: float32 as ever
    rows = 2 * tokens * config.n_head
    alive = dict.fromkeys(moments, config.n_layer - sum(segments)) | {"embedding": 0}
    alive |= {f"segment {i}": size for i, size in enumerate(segments)}
    return {name: size // 2 + alive[name] * rows for name, size in moments.items()}


def _autocast_moments(
    config: GPTConfig, segments: Sequence[int], early_stop: bool, *, micro_batch: int, block: int
) -> dict[str, int]:
    """Under autocast residual stream, norms and loss are float32, products work in 16 bits."""
    C, V, L, tokens = config.n_embd, config.vocab_size, config.n_layer, micro_batch * block
    batch = dict(micro_batch=micro_batch, block=block)
    stream = stream_bytes(config, **batch)
    layer = layer_bytes(config, **batch, precision="autocast")
    last_norm = tokens * (6 * C + 8)  # its input in float32, its result in 16 bits
    copies = weight_copy_bytes(config)
    if not segments:
        return {"loss": L * layer + last_norm + 12 * V * tokens + copies}
    if [*segments] != [1] * L or not early_stop:
        raise ValueError(
            f"segments={list(segments)} and early_stop={early_stop} under autocast: give "
            f"[1] * {L} and early_stop=True, or no segments"
        )
    # Gradients of the stream in both types, of gelu's result, and of a matrix
    work = tokens * (4 + 2 + 8) * C + 8 * C * C
    stored = L * stream + last_norm
    moments = {
        "forward": stored + 10 * V * tokens + copies,
        "loss": stored + 12 * V * tokens + 2 * V * C,  # autocast is over, and its copies are gone
        "embedding": stream + 4 * V * C,
    }
    # Layer i is computed again, with copies of its matrices, and its MLP's backward runs
    return moments | {f"segment {i}": i * stream + layer + 24 * C * C + work for i in range(L)}


def activation_peak(
    config: GPTConfig,
    *,
    micro_batch: int,
    block: int,
    precision: str = "float32",
    segments: Sequence[int] = (),
    early_stop: bool = False,
) -> int:
    """Largest bytes of activations in a step. Arguments as for ``activation_moments``."""
    moments = activation_moments(
        config,
        micro_batch=micro_batch,
        block=block,
        precision=precision,
        segments=segments,
        early_stop=early_stop,
    )
    return max(moments.values())


def selective_peak(config: GPTConfig, *, micro_batch: int, block: int) -> int:
    """The same where each layer keeps the results of its products and of attention, in float32.

    A layer then stores 11 C + H values a token: the stream, q, k, v, attention, proj, up and down.
    Norms and gelu, which cost next to nothing, are computed again.
    """
    C, H, tokens = config.n_embd, config.n_head, micro_batch * block
    batch = dict(micro_batch=micro_batch, block=block)
    stored = 4 * tokens * config.n_layer * (11 * C + H)
    again = 4 * tokens * (C + 2 + C + 2 + 4 * C)  # norms and gelu; proj's result is gone by then
    layers = stored + again + mlp_backward_bytes(config, **batch)
    return max(layers, stored + loss_bytes(config, **batch))
