"""When the buckets of data parallelism travel, and how much of that backward hides.

A bucket leaves when backward has finished its last layer and the bucket before it is through; it
takes what a ring all-reduce takes. All layers are alike here, so that one idea is left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlcourse.formulas.collective_time import CostModel

Span = tuple[float, float]  # start and end, in seconds


@dataclass(frozen=True)
class Job:
    """A model of equal layers on ranks with one network card each; the default is lesson 03's.

    Attributes:
        layers: how many.
        width: of a layer, which is one square matrix of float32.
        forward, backward: seconds of one layer.
        latency, bandwidth: of each rank's card, in seconds and bytes a second.
    """

    layers: int = 8
    width: int = 56
    forward: float = 0.010
    backward: float = 0.020
    latency: float = 0.002
    bandwidth: float = 1e6

    @property
    def layer_bytes(self) -> int:
        return 4 * self.width**2

    def shared(self, share: float) -> Job:
        """The same job with another share of the sequences in each rank."""
        return replace(self, forward=share * self.forward, backward=share * self.backward)

    def alone(self) -> float:
        """Seconds of a step without messages."""
        return self.layers * (self.forward + self.backward)


def buckets(job: Job, layers_in_a_bucket: int, world_size: int) -> list[Span]:
    """When each bucket travels, from the start of backward on; the last one may hold fewer."""
    cost = CostModel(job.latency, 1 / job.bandwidth)
    spans, free = [], 0.0
    for first in range(0, job.layers, layers_in_a_bucket):
        count = min(layers_in_a_bucket, job.layers - first)
        start = max(free, (first + count) * job.backward)
        free = start + cost.predict("ring_all_reduce", count * job.layer_bytes, world_size)
        spans.append((start, free))
    return spans


def hidden_share(job: Job, layers_in_a_bucket: int, world_size: int) -> float:
    """The share of the messages' time during which backward still computes."""
    spans, ends = buckets(job, layers_in_a_bucket, world_size), job.layers * job.backward
    hidden = sum(max(0.0, min(end, ends) - start) for start, end in spans)
    return hidden / sum(end - start for start, end in spans)


def overlapped_seconds(
    job: Job, layers_in_a_bucket: int, world_size: int, *, behind: bool = True
) -> float:
    """Seconds of a step: messages behind backward, or (behind=False) all of them after it."""
    spans = buckets(job, layers_in_a_bucket, world_size)
    if behind:
        return job.layers * job.forward + spans[-1][1]
    return job.alone() + sum(end - start for start, end in spans)


def best_bucket(job: Job, world_size: int) -> int:
    """Layers in a bucket with the shortest step, of 1, 2, 4, ... and all."""
    sizes = [2**k for k in range(job.layers.bit_length()) if 2**k <= job.layers]
    return min(sizes, key=lambda size: overlapped_seconds(job, size, world_size))
