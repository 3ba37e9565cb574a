"""FLOPs of attention, of a training step, and of a token. A multiply-add counts as two.

Products of matrices count, nothing else does. Causal masking is not subtracted (torch's counter
does not either). Shape letters as in ``sizes.py``.

Sources: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021,
appendix; Dao et al., "FlashAttention", 2022, for the scores that its backward makes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dlcourse.formulas.checkpoint_segments import check_segments
from dlcourse.formulas.parameters import matrix_parameters
from dlcourse.formulas.sizes import GPTConfig


def attention_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Forward: scores and weighted sum. Shapes (batch, heads, length, head dim).

    Takes the number of heads from the query, so grouped queries are right too.
    """
    *batch, s_q, d = query
    s_k, d_v = key[-2], value[-1]
    return 2 * prod(batch) * s_q * s_k * (d + d_v)


def attention_backward_flops(query: Sequence[int], key: Sequence[int], value: Sequence[int]) -> int:
    """Backward of fused attention: scores again, then gradients of value, scores, query and key.

    2.5 times its forward, where the unfused one is 2 times.
    """
    *batch, s_q, d = query
    s_k, d_v = key[-2], value[-1]
    return 2 * prod(batch) * s_q * s_k * (3 * d + 2 * d_v)


def step_flops(
    config: GPTConfig,
    *,
    micro_batch: int,
    block: int,
    segments: Sequence[int] = (),
    early_stop: bool = False,
) -> int:
    """Of forward, backward and what is computed again, of one micro-batch.

    A layer's forward takes 24 B T C^2 for its matrices and 4 B T^2 C for attention; backward takes
    2 times that for matrices and 2.5 times for fused attention, which makes its scores again.

    Args:
        segments, early_stop: as for ``activations.activation_moments``.
    """
    check_segments(segments, config.n_layer)
    tokens, C, H = micro_batch * block, config.n_embd, config.n_head
    shape_BHTD = (micro_batch, H, block, C // H)
    attention = attention_flops(shape_BHTD, shape_BHTD, shape_BHTD)
    attention_backward = attention_backward_flops(shape_BHTD, shape_BHTD, shape_BHTD)
    matrices = 2 * tokens * 12 * C * C
    step = 3 * 2 * tokens * matrix_parameters(config)  # backward: two products for each of forward
    step += config.n_layer * (attention + attention_backward)
    again = sum(segments) * (matrices + attention)
    if early_stop:  # the last product of a segment is not needed by its backward
        again -= len(segments) * 8 * tokens * C * C
    return step + again


def flops_per_token(config: GPTConfig, *, block: int) -> int:
    """Of forward and backward, for the MFU: nothing that is computed again counts.

    Source: Chowdhery et al., "PaLM", 2022, appendix B: 6 for each weight of a matrix product, and
    12 T C for each layer's attention.
    """
    return 6 * matrix_parameters(config) + 12 * config.n_layer * block * config.n_embd
