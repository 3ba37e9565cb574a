"""Seconds of what a GPU does by itself: products of matrices, attention, streaming.

One efficiency curve a GPU type, by the sizes of the matrices. It has no free constant of its own:

- large products run at ``sustained_matrix``, what the power limit leaves;
- a product is cut into tiles, dealt to the multiprocessors in waves; a last wave that is not full
  costs as much as a full one, at the clock of the best shape (``best_matrix``), and tiles that
  reach over the edge are computed whole. A library takes the tile that suits best, smaller ones
  with less reuse;
- nothing is faster than reading the matrices, and writing the result comes on top;
- a kernel has to be started and to drain: ``kernel_seconds``.

A cluster whose products were measured (``calibrate.py``) has their curve instead.

Source: NVIDIA, "Matrix Multiplication Background User's Guide", on tile and wave quantization.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dlcourse.plan.cluster import Cluster
from dlcourse.plan.job import Array

# Rows and columns of a tile, and the share of the best speed that its reuse allows: the guide's
# figure for A100 gives a 256 x 128 tile 1, 128 x 128 about 0.9, 64 x 128 0.7, 64 x 64 a half (from
# memory; tests hold the curve against products that were measured)
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.7), (64, 64, 0.5))
GROUP_STREAMS = 4
SPLITS = (1, 2, 4, 8)  # of the inner dimension, where there are fewer tiles than multiprocessors


def matrix_seconds(
    cluster: Cluster,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    *,
    count: ArrayLike = 1,
    output: int = 2,
) -> Array:
    """Of ``count`` products (m, k) x (k, n) in 16 bits, done as one group.

    output: bytes that move for each number of the result: 2 written; 8 where it is added to a sum
        in float32, as gradients of weights are.
    """
    m, n, k = np.asarray(m, float), np.asarray(n, float), np.asarray(k, float)
    count, copies = np.asarray(count, float), cluster.bandwidth * cluster.copy_efficiency
    if cluster.efficiency:
        measured = _measured(cluster, m, n, k) * count
        more = (output - 2) * m * n * count / copies
        return np.maximum(measured, 2 * (m * k + k * n + m * n) * count / copies) + more
    best = np.full(np.broadcast(m, n, k, count).shape, np.inf)
    for rows, columns, quality in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * count
        for split in SPLITS:
            waves = np.ceil(tiles * split / cluster.multiprocessors)
            flops = waves * cluster.multiprocessors * 2 * rows * columns * np.ceil(k / split)
            sums = (split > 1) * split * 4 * m * n * count / copies
            best = np.minimum(best, flops / (cluster.best_matrix * quality) + sums)
    power = 2 * m * n * k * count / cluster.sustained_matrix
    loads = 2 * (m * k + k * n) * count / copies
    stores = output * m * n * count / copies
    return np.maximum(np.maximum(best, loads) + stores, power) + cluster.kernel_seconds


def _measured(cluster: Cluster, m: Array, n: Array, k: Array) -> Array:
    """Of one product, by the efficiency of the square product with as many FLOPs.

    Between two measured sides the efficiency is interpolated over the side's logarithm. Start of
    the kernel, reading and writing are in what was measured; below the smallest side they are all.
    """
    sides, shares = (np.array(each) for each in zip(*cluster.efficiency, strict=True))
    side = np.cbrt(m * n * k)
    share = np.interp(np.log(side), np.log(sides), shares)
    return np.maximum(2 * m * n * k / (cluster.best_matrix * share), cluster.kernel_seconds)


def matrix_efficiency(cluster: Cluster, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Array:
    """FLOP/s of a product as a share of the peak: the curve."""
    flops = 2 * np.asarray(m, float) * np.asarray(n, float) * np.asarray(k, float)
    return flops / matrix_seconds(cluster, m, n, k) / cluster.peak


def grouped_seconds(
    cluster: Cluster,
    m: ArrayLike,
    n: ArrayLike,
    k: ArrayLike,
    count: ArrayLike,
    *,
    sums: int,
    apart: int = 0,
) -> tuple[Array, Array, Array]:
    """Of a linear layer of each of ``count`` experts; a few of them run at a time.

    Source: Transformer Engine's GroupedLinear, four streams.
    """
    count = np.asarray(count, float)
    beside = np.minimum(count, GROUP_STREAMS)
    one = linear_seconds(cluster, m, n, k, sums=sums, apart=apart, count=beside)
    forward, inputs, weights = (seconds * count / beside for seconds in one)
    return forward, inputs, weights


def linear_seconds(
    cluster: Cluster,
    tokens: ArrayLike,
    out: ArrayLike,
    into: ArrayLike,
    *,
    sums: int,
    apart: int = 0,
    count: ArrayLike = 1,
) -> tuple[Array, Array, Array]:
    """Of a linear layer: forward, gradient of its input, gradient of its weights.

    sums: bytes that move for each weight's gradient, which is written and summed.
    apart: of them, those of a kernel of its own, which no product hides.
    """
    weights = matrix_seconds(cluster, out, into, tokens, count=count, output=sums - apart)
    if apart:
        numbers = np.asarray(out, float) * into * np.asarray(count, float)
        weights = weights + stream_seconds(cluster, apart * numbers)
    return (
        matrix_seconds(cluster, tokens, out, into, count=count),
        matrix_seconds(cluster, tokens, into, out, count=count),
        weights,
    )


def stream_seconds(
    cluster: Cluster, nbytes: ArrayLike, *, kernels: int = 1, efficiency: float | None = None
) -> Array:
    """Of kernels that read and write ``nbytes`` together and compute next to nothing.

    efficiency: share of the memory's bandwidth; that of streaming kernels if not given.
    """
    rate = cluster.bandwidth * (efficiency or cluster.memory_efficiency)
    return np.asarray(nbytes, float) / rate + kernels * cluster.kernel_seconds


def flash_seconds(
    cluster: Cluster, flops: ArrayLike, blocks: ArrayLike, *, kind: str = "flash"
) -> tuple[Array, Array]:
    """Of fused causal attention, forward and backward.

    flops: of the forward's two products, the masked half left out. Backward has 2.5 times as many.
    blocks: of 128 rows, of all heads and sequences; where they are few, multiprocessors are idle.
    kind: "flash" is FlashAttention-2, "flash3" the third or cuDNN, "flash1" the first: the second
        is 1.3 to 2.5 times as fast as the first in Triton (its paper, section 4.1, from memory),
        taken as 1.8.
    """
    flops = np.asarray(flops, float)
    ramp = 1 + cluster.attention_ramp * cluster.multiprocessors / np.asarray(blocks, float)
    forward, backward = cluster.flash_forward, cluster.flash_backward
    if kind == "flash3":
        forward, backward = cluster.flash3_forward, cluster.flash3_backward
    elif kind == "flash1":
        forward, backward = forward / 1.8, backward / 1.8
    return (
        flops / forward * ramp + cluster.kernel_seconds,
        2.5 * flops / backward * ramp + 2 * cluster.kernel_seconds,
    )
