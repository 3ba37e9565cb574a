"""Where the bytes of mixed precision are: formulas for one rank, by category, without torch.

For the GPT of ``dlcourse.models.gpt`` with torch's fused attention. ``KEPT`` is what autograd keeps
for one token in one block.

Source: counted as in Korthikanti et al., "Reducing Activation Recomputation in Large Transformer
Models", MLSys 2023, section 4.1, with the operators of this model.
"""

from __future__ import annotations

from collections.abc import Mapping

WAYS = ("float32", "autocast", "master", "bfloat16")

_STATES = {  # parameter, gradient, optimizer state
    "float32": (4, 4, 8),
    "autocast": (4, 4, 8),
    "master": (2, 2, 12),
    "bfloat16": (2, 2, 4),
}

# Bytes, as multiples of the width C: in float32, under autocast, with all in 16 bits
KEPT = {
    "stream": (8, 8, 4),  # residual stream, twice: the inputs of the two norms
    "qkv_in": (4, 6, 2),  # autocast converts it three times, and each copy is kept
    "qkv": (12, 6, 6),
    "attention": (4, 2, 2),  # its output, which the projection reads
    "mlp_in": (4, 2, 2),
    "hidden": (32, 16, 16),  # 4C wide, before and after GELU
}


def state_bytes(num_parameters: int, way: str) -> dict[str, int]:
    """Bytes between two steps (without the optimizer's step counters, 4 bytes a tensor)."""
    sizes = _STATES[_known(way)]
    names = ("parameters", "gradients", "optimizer_state")
    return {name: size * num_parameters for name, size in zip(names, sizes, strict=True)}


def weight_copies(sizes: Mapping[str, int], way: str) -> int:
    """Bytes of the 16-bit copies of matrices that autocast makes, alive until backward is over."""
    if _known(way) != "autocast":
        return 0
    C, V = sizes["n_embd"], sizes["vocab_size"]
    return 2 * (sizes["n_layer"] * 12 * C * C + V * C)


def activation_bytes(sizes: Mapping[str, int], *, tokens: int, way: str) -> int:
    """Largest number of bytes of activations in a step: when backward begins.

    Args:
        sizes: n_layer, n_head, n_embd, vocab_size, as in ``GPTConfig``.
        tokens: sequences times their length.
        way: one of ``WAYS``.
    """
    C, H, V, L = (sizes[name] for name in ("n_embd", "n_head", "vocab_size", "n_layer"))
    wide = 4 if _known(way) in ("float32", "autocast") else 2  # residual stream, norms, the loss
    column = {"float32": 0, "autocast": 1}.get(way, 2)
    block = sum(row[column] for row in KEPT.values()) * C
    block += 4 * H + 4 * wide  # a number for each head, and two for each norm
    last = wide * C + (4 if way == "float32" else 2) * C + 2 * wide  # the norm after the blocks
    loss = 3 * wide * V  # probabilities, and the gradients of two steps back from the loss
    return tokens * (L * block + last + loss) + weight_copies(sizes, way)


def checkpointed_moments(sizes: Mapping[str, int], *, tokens: int) -> dict[str, int]:
    """Bytes of activations under autocast where each block stores its input only.

    "forward": its end, where autocast still has the 16-bit copies of all matrices. "loss": backward
    begins, autocast is over. "segment i": block i is computed again, with copies of its matrices,
    and its MLP's backward runs. "embedding": the end. Arguments as for ``activation_bytes``.
    """
    C, H, V, L = (sizes[name] for name in ("n_embd", "n_head", "vocab_size", "n_layer"))
    stream = 4 * tokens * C
    stored = L * stream + tokens * (6 * C + 8)  # and what the norm after the blocks keeps
    block = tokens * (sum(autocast for _, autocast, _ in KEPT.values()) * C + 4 * H + 16)
    # Gradients of the stream in both types, of gelu's result, and of a matrix
    work = tokens * (4 + 2 + 8) * C + 8 * C * C
    moments = {
        "forward": stored + 10 * V * tokens + weight_copies(sizes, "autocast"),
        "loss": stored + 12 * V * tokens + 2 * V * C,
        "embedding": stream + 4 * V * C,
    }
    return moments | {f"segment {i}": i * stream + block + 24 * C * C + work for i in range(L)}


def _known(way: str) -> str:
    if way not in WAYS:
        raise ValueError(f"way={way!r} is unknown: give one of {', '.join(WAYS)}")
    return way
