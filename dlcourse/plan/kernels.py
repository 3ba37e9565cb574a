"""Seconds of what a GPU does by itself: products of matrices, attention, streaming.

One efficiency curve a GPU type, by the sizes of the matrices. It has no free constant of its own:

- large products run at ``sustained_matrix``, what the power limit leaves;
- a product is cut into tiles, dealt to the multiprocessors in waves; a last wave that is not full
  costs as much as a full one, at the clock of the best shape (``best_matrix``), and tiles that
  reach over the edge are computed whole. A library takes the tile that suits best, smaller ones
  with less reuse;
- nothing is faster than reading the matrices and writing the result;
- a kernel has to be started and to drain: ``kernel_seconds``.

Source: NVIDIA, "Matrix Multiplication Background User's Guide", on tile and wave quantization.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dlcourse.plan.cluster import Cluster
from dlcourse.plan.job import Array

# Rows and columns of a tile, and the share of the best speed that its reuse allows: the guide's
# figure for A100 gives a 256 x 128 tile 1, 128 x 128 about 0.9, 64 x 128 0.7, 64 x 64 a half
TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.7), (64, 64, 0.5))
SPLITS = (1, 2, 4, 8)  # of the inner dimension, where there are fewer tiles than multiprocessors


def matrix_seconds(
    cluster: Cluster, m: ArrayLike, n: ArrayLike, k: ArrayLike, *, count: ArrayLike = 1
) -> Array:
    """Of ``count`` products (m, k) x (k, n) in 16 bits, done as one group."""
    m, n, k = np.asarray(m, float), np.asarray(n, float), np.asarray(k, float)
    count = np.asarray(count, float)
    best = np.full(np.broadcast(m, n, k, count).shape, np.inf)
    for rows, columns, quality in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * count
        for split in SPLITS:
            waves = np.ceil(tiles * split / cluster.multiprocessors)
            flops = waves * cluster.multiprocessors * 2 * rows * columns * np.ceil(k / split)
            sums = (split > 1) * split * 4 * m * n * count / cluster.stream
            best = np.minimum(best, flops / (cluster.best_matrix * quality) + sums)
    power = 2 * m * n * k * count / cluster.sustained_matrix
    traffic = 2 * (m * k + k * n + m * n) * count / cluster.stream
    return np.maximum(np.maximum(best, power), traffic) + cluster.kernel_seconds


def matrix_efficiency(cluster: Cluster, m: ArrayLike, n: ArrayLike, k: ArrayLike) -> Array:
    """FLOP/s of a product as a share of the peak: the curve."""
    flops = 2 * np.asarray(m, float) * np.asarray(n, float) * np.asarray(k, float)
    return flops / matrix_seconds(cluster, m, n, k) / cluster.peak


def linear_seconds(
    cluster: Cluster, tokens: ArrayLike, out: ArrayLike, into: ArrayLike, *, count: ArrayLike = 1
) -> tuple[Array, Array, Array]:
    """Of a linear layer: forward, gradient of its input, gradient of its weights."""
    return (
        matrix_seconds(cluster, tokens, out, into, count=count),
        matrix_seconds(cluster, tokens, into, out, count=count),
        matrix_seconds(cluster, out, into, tokens, count=count),
    )


def stream_seconds(cluster: Cluster, nbytes: ArrayLike, *, kernels: int = 1) -> Array:
    """Of kernels that read and write ``nbytes`` together and compute next to nothing."""
    return np.asarray(nbytes, float) / cluster.stream + kernels * cluster.kernel_seconds


def flash_seconds(cluster: Cluster, flops: ArrayLike) -> tuple[Array, Array]:
    """Of fused causal attention, forward and backward.

    flops: of the forward's two products, the masked half left out. Backward has 2.5 times as many.
    """
    flops = np.asarray(flops, float)
    forward = flops / cluster.flash_forward + cluster.kernel_seconds
    return forward, 2.5 * flops / cluster.flash_backward + 2 * cluster.kernel_seconds
