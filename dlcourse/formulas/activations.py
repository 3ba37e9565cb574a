"""How many bytes of activations a training step of our GPT needs, and how many FLOPs: by formula.

Term by term, what autograd stores for one layer. Two things make it differ from the formula that
everybody quotes, s b h (34 + 5 a s / h) bytes: we store 4 bytes a value and not 2, and the fused
attention keeps no scores, the 5 a s / h, but one number for each row of them.

Shape letters as in ``gpt.py``: B sequences, T positions, C width, H heads, V vocabulary.

Source of the quoted formula: Korthikanti et al., "Reducing Activation Recomputation in Large
Transformer Models", 2022, section 4.1, https://arxiv.org/abs/2205.05198.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlcourse.training.checkpointing.placement import check_segments

FLOAT32 = 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and the batch it trains on: ``sequences`` of ``block`` tokens. Needs no torch."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    vocab_size: int = 256
    sequences: int = 4
    block: int = 128

    @classmethod
    def of(cls, config: Any, *, sequences: int, block: int) -> Shape:
        """The shape of a ``GPTConfig``."""
        names = ("n_layer", "n_head", "n_embd", "vocab_size")
        sizes = {name: getattr(config, name) for name in names}
        return cls(**sizes, sequences=sequences, block=block)

    @property
    def tokens(self) -> int:
        """B T, of one step."""
        return self.sequences * self.block


def layer_terms(shape: Shape) -> dict[str, int]:
    """Bytes that one layer stores for backward, by the operator that reads them there."""
    C, H = shape.n_embd, shape.n_head
    values = {  # for each token
        "attention_norm": C + 2,  # its input, the stream; a mean and a scale
        "q, k, v": C,  # one input for all three
        "attention": 3 * C + H,  # q, k and v; of each row of scores the log of its sum
        "proj": C,  # attention's result, which attention's own backward reads as well
        "mlp_norm": C + 2,
        "up": C,
        "gelu": 4 * C,
        "down": 4 * C,
    }
    return {name: FLOAT32 * shape.tokens * n for name, n in values.items()}


def layer_bytes(shape: Shape) -> int:
    """What one layer stores: 4 B T (16 C + H + 4)."""
    return sum(layer_terms(shape).values())


def quoted_terms(shape: Shape) -> dict[str, float]:
    """The published formula by the same operators: 2 bytes a value, dropout masks, all scores.

    Together s b h (34 + 5 a s / h): 32 of the 34 are 16 values of 2 bytes, as here; two are masks.
    """
    s, b, h, a = shape.block, shape.sequences, shape.n_embd, shape.n_head
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


def activation_moments(
    shape: Shape, segments: Sequence[int] = (), *, early_stop: bool = False
) -> dict[str, int]:
    """Bytes of activations at the moments that may be the highest of a step.

    "loss": all is stored, and the loss works on logits. "head": its gradient is being made.
    "layers": the last layers, which no checkpoint covers. "segment i": recomputed, and in the
    middle of its backward. "embedding": the end. The largest is the peak.

    Args:
        segments: the placement, see ``placement.py``.
        early_stop: the second forward ends at the last value that backward reads, as torch's
            does: it does not make the segment's result again.

    Raises:
        ValueError: ``segments`` do not fit ``shape.n_layer``.
    """
    check_segments(segments, shape.n_layer)
    C, V, tokens = shape.n_embd, shape.vocab_size, shape.tokens
    stream, logits = FLOAT32 * tokens * C, FLOAT32 * tokens * V
    layer = layer_bytes(shape)
    stored = len(segments) * stream + (shape.n_layer - sum(segments)) * layer
    last_norm = 2 * stream + FLOAT32 * tokens * 2
    # Backward of an MLP: two gradients, of the stream and of gelu's result; the one of a weight
    work = stream + 4 * stream + FLOAT32 * 4 * C * C
    moments = {
        "loss": stored + last_norm + 3 * logits,  # log-softmax, and a gradient in and out
        "head": stored + last_norm + logits + stream + FLOAT32 * V * C,
        "embedding": stream + FLOAT32 * V * C,
    }
    if sum(segments) < shape.n_layer:
        moments["layers"] = stored + work
    for i, size in enumerate(segments):
        result = 0 if early_stop else stream
        moments[f"segment {i}"] = i * stream + size * layer + result + work
    return moments


def activation_peak(shape: Shape, segments: Sequence[int] = (), *, early_stop: bool = False) -> int:
    """Largest bytes of activations in a step. Arguments as for ``activation_moments``."""
    return max(activation_moments(shape, segments, early_stop=early_stop).values())


def selective_peak(shape: Shape) -> int:
    """The same where each layer keeps the results of its products and of attention.

    A layer then stores 11 C + H values a token: the stream, q, k, v, attention, proj, up and down.
    Norms and gelu, which cost next to nothing, are computed again.
    """
    C, H, tokens = shape.n_embd, shape.n_head, shape.tokens
    stored = shape.n_layer * (11 * C + H)
    again = C + 2 + C + 2 + 4 * C  # both norms and gelu; proj's result makes way for the stream
    layers = FLOAT32 * tokens * (stored + again + 5 * C) + FLOAT32 * 4 * C * C
    loss = FLOAT32 * tokens * (stored + 2 * C + 2 + 3 * shape.vocab_size)
    return max(layers, loss)


def step_flops(shape: Shape, segments: Sequence[int] = (), *, early_stop: bool = False) -> int:
    """FLOPs of forward, backward and what is computed again. Products count, nothing else does.

    A layer's forward takes 24 B T C^2 for its matrices and 4 B T^2 C for attention; backward takes
    2 times that for matrices and 2.5 times for fused attention, which makes its scores again.
    """
    check_segments(segments, shape.n_layer)
    C, tokens = shape.n_embd, shape.tokens
    matrices, attention = 24 * tokens * C * C, 4 * tokens * shape.block * C
    head = 2 * tokens * C * shape.vocab_size
    step = shape.n_layer * (3 * matrices + 7 * attention // 2) + 3 * head
    again = sum(segments) * (matrices + attention)
    if early_stop:  # the last product of a segment is not needed by its backward
        again -= len(segments) * 8 * tokens * C * C
    return step + again
