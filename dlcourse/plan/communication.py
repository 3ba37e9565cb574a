"""Seconds of collectives between ranks that may share a node, by NCCL's own cost model.

A ring over g ranks: the bytes at the bandwidth of its slowest link, and for every step the latency
of that step, over NVLink or over the network. Where m ranks of a group share a node, m network
cards carry the group's traffic out of it: tensor parallelism over two nodes still has all cards,
data parallelism next to 8 tensor ranks has one.

Source: NCCL, src/graph/tuning.cc (rings, protocol Simple); Thakur, Rabenseifner and Gropp,
"Optimization of Collective Communication Operations in MPICH", 2005.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from dlcourse.formulas.traffic import share_of_others
from dlcourse.plan.cluster import Cluster
from dlcourse.plan.job import Array


def members_of_node(cluster: Cluster, size: ArrayLike, stride: ArrayLike) -> Array:
    """Ranks of a group that share a node: every ``stride``-th rank belongs to it."""
    size = np.asarray(size, float)
    inside = np.maximum(1.0, np.floor(cluster.node / np.asarray(stride, float)))
    return np.minimum(size, inside)


def bandwidth(cluster: Cluster, size: ArrayLike, stride: ArrayLike) -> Array:
    """Bytes/s of a ring ("bus bandwidth")."""
    members = members_of_node(cluster, size, stride)
    inside = cluster.node_bandwidth * cluster.node_efficiency
    across = members * cluster.network_bandwidth * cluster.network_efficiency
    return np.where(np.asarray(size) <= members, inside, np.minimum(inside, across))


def gather_seconds(
    cluster: Cluster, nbytes: ArrayLike, size: ArrayLike, stride: ArrayLike
) -> Array:
    """Of an all-gather or reduce-scatter; ``nbytes`` is the whole buffer."""
    size = np.asarray(size, float)
    nodes = np.ceil(size / members_of_node(cluster, size, stride))
    steps = (size - nodes) * cluster.node_hop_seconds + (nodes - 1) * cluster.network_hop_seconds
    rate = bandwidth(cluster, size, stride)
    seconds = (
        share_of_others(size) * np.asarray(nbytes, float) / rate + cluster.ring_seconds + steps
    )
    return np.where(size > 1, seconds, 0.0)


def all_reduce_seconds(
    cluster: Cluster, nbytes: ArrayLike, size: ArrayLike, stride: ArrayLike
) -> Array:
    """A ring inside a node; between nodes a tree where its few steps win."""
    size = np.asarray(size, float)
    ring = 2 * gather_seconds(cluster, nbytes, size, stride) - cluster.ring_seconds * (size > 1)
    nodes = np.ceil(size / members_of_node(cluster, size, stride))
    steps = 2 * np.log2(np.maximum(nodes, 1)) * cluster.network_hop_seconds
    steps = steps + 2 * (size / nodes - 1) * cluster.node_hop_seconds
    sent = 2 * share_of_others(size) * np.asarray(nbytes, float)
    tree = sent / bandwidth(cluster, size, stride) + cluster.ring_seconds + steps
    return np.where(size > 1, np.minimum(ring, tree), 0.0)


def all_to_all_seconds(
    cluster: Cluster, nbytes: ArrayLike, size: ArrayLike, stride: ArrayLike
) -> Array:
    """``nbytes`` is what a rank has for all others; what leaves the node goes over its own card."""
    size = np.asarray(size, float)
    members = members_of_node(cluster, size, stride)
    nbytes = np.asarray(nbytes, float)
    link = cluster.node_bandwidth * cluster.all_to_all_efficiency
    card = cluster.network_bandwidth * cluster.network_efficiency
    inside = (members - 1) / size * nbytes / link
    outside = (size - members) / size * nbytes / card
    nodes = np.ceil(size / members)  # one round with each, as with each rank of the own node
    rounds = (members - 1) * cluster.node_hop_seconds + (nodes - 1) * cluster.network_hop_seconds
    seconds = np.maximum(inside, outside) + cluster.ring_seconds + rounds
    return np.where(size > 1, seconds, 0.0)


def disturbance(cluster: Cluster, size: ArrayLike, stride: ArrayLike) -> Array:
    """Share of a hidden collective's time that computing beside it loses.

    It takes multiprocessors and memory bandwidth as it moves bytes: in full at the links of a node,
    less where one card of the network carries it.
    """
    inside = cluster.node_bandwidth * cluster.node_efficiency
    return cluster.overlap_cost * bandwidth(cluster, size, stride) / inside


def send_seconds(cluster: Cluster, nbytes: ArrayLike, stride: ArrayLike) -> Array:
    """Of one message to the rank ``stride`` further."""
    near = np.asarray(stride, float) < cluster.node
    rate = np.where(
        near,
        cluster.node_bandwidth * cluster.node_efficiency,
        cluster.network_bandwidth * cluster.network_efficiency,
    )
    return np.asarray(nbytes, float) / rate + cluster.point_to_point_seconds
