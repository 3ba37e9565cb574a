"""What a GPT of layers that differ has, uses and computes: parameters in all and for one token.

A dense layer uses all it has for every token. A layer of experts has E of them and uses K, and
training must keep gradients and the optimizer's state for all E.

Counted from the modules of ``dlcourse.models``; a multiply-add counts as two FLOPs. Shape letters
as in ``sizes.py``, and F hidden width, E experts, K of them for a token, W window or chunk.
"""

from __future__ import annotations

from dataclasses import replace

from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.formulas.states import STEP_COUNTER_BYTES

CHUNK = 32  # positions that a linear recurrence computes at a time


def mixer_parameters(config: ArchitectureConfig, mixer: str) -> int:
    """Four matrices and one bias; a recurrence has one more number for each head and feature."""
    C, H = config.n_embd, config.n_head
    return 4 * C * C + C + (C * H + H if mixer == "recurrent" else 0)


def _mlp(width: int, hidden: int, blocks: int = 1) -> int:
    """Two matrices, dense or with blocks on the diagonal, and their biases."""
    return 2 * width * hidden // blocks + hidden + width


def feed_forward_parameters(
    config: ArchitectureConfig, feed_forward: str, *, experts: int | None = None
) -> int:
    """Of one feed-forward layer.

    Args:
        experts: count so many of them; all by default.
    """
    C = config.n_embd
    if feed_forward == "mlp":
        return _mlp(C, config.mlp_width)
    if feed_forward == "block_sparse":
        return _mlp(C, config.mlp_width, config.num_blocks)
    routed = (config.num_experts if experts is None else experts) * _mlp(C, config.expert_width)
    shared = _mlp(C, config.shared_hidden) if config.shared_hidden else 0
    return config.num_experts * C + routed + shared  # the router is used whole


def total_parameters(config: ArchitectureConfig) -> int:
    """Of the whole model: what training keeps states for."""
    return _outside(config) + sum(
        mixer_parameters(config, mixer) + 4 * config.n_embd + feed_forward_parameters(config, kind)
        for mixer, kind in config.layers()
    )


def active_parameters(config: ArchitectureConfig) -> int:
    """That one token uses: of the experts, K in each layer. The embeddings are counted whole."""
    unused = config.num_experts - config.top_k
    moe_layers = sum(kind == "moe" for _, kind in config.layers())
    return total_parameters(config) - moe_layers * unused * _mlp(config.n_embd, config.expert_width)


def _outside(config: ArchitectureConfig) -> int:
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    return (2 - config.tie_embeddings) * V * C + T * C + 2 * C


def mixer_flops_per_token(config: ArchitectureConfig, mixer: str, *, block: int) -> float:
    """Forward, beside the four matrices: what positions have to do with each other.

    Attention: 4 T C. A window of W, computed in chunks: 4 (2 W) C, whatever T is. A recurrence:
    4 W C inside a chunk, and 4 D C to write and read a state of D numbers for each feature.
    """
    C = config.n_embd
    if mixer == "attention":
        return 4 * block * C
    if mixer == "window":
        width = min(config.window, block)
        return 4 * 2 * width * C * _padded(block, width)
    head = C // config.n_head
    return (4 * CHUNK * C + 4 * head * C) * _padded(block, CHUNK) + 2 * C * config.n_head


def _padded(block: int, chunk: int) -> float:
    return -(-block // chunk) * chunk / block


def architecture_flops_per_token(config: ArchitectureConfig, *, block: int) -> float:
    """Of forward and backward, for a token of a sequence of ``block``; nothing is dropped.

    Backward is two products for each of forward. Fused attention makes its scores once more there;
    as everywhere, that does not count.
    """
    C = config.n_embd
    forward = 2.0 * config.vocab_size * C
    for mixer, kind in config.layers():
        forward += 2 * 4 * C * C + mixer_flops_per_token(config, mixer, block=block)
        if kind == "moe":
            forward += 2 * C * config.num_experts
            forward += 4 * C * (config.top_k * config.expert_width + (config.shared_hidden or 0))
        else:
            blocks = config.num_blocks if kind == "block_sparse" else 1
            forward += 4 * C * config.mlp_width // blocks
    return 3 * forward


def training_state_bytes(config: ArchitectureConfig) -> dict[str, int]:
    """Bytes of parameters, gradients and AdamW's state in float32, by category.

    Every expert has them, whether a token uses it or not.
    """
    numbers = total_parameters(config)
    tensors = 4 + (not config.tie_embeddings)
    for mixer, kind in config.layers():
        tensors += 4 + 5 + 2 * (mixer == "recurrent")  # two norms, the mixer
        tensors += 4 + (1 + 4 * bool(config.shared_hidden)) * (kind == "moe")
    return {
        "parameters": 4 * numbers,
        "gradients": 4 * numbers,
        "optimizer_state": 8 * numbers + STEP_COUNTER_BYTES * tensors,
    }


def compared_architectures(base: ArchitectureConfig) -> dict[str, ArchitectureConfig]:
    """Six architectures of the sizes of ``base``, which compute about the same for a token.

    All but "dense_total": it is dense and has as many parameters as "moe" has in all.
    """
    width = base.mlp_width
    return {
        "dense": base,
        "moe": replace(base, feed_forwards=("moe",)),
        "dense_total": replace(base, hidden=width * base.num_experts // base.top_k),
        "sparse": replace(
            base,
            mixers=("window",),
            feed_forwards=("block_sparse",),
            hidden=width * base.num_blocks,
        ),
        "hybrid_moe": replace(base, feed_forwards=("mlp", "moe")),
        "hybrid_recurrent": replace(base, mixers=("recurrent", "attention")),
    }
