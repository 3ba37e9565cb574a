"""The machines: what a GPU, its node and its network can do.

The constants stand in ``gpus.json``, one set for each GPU type, each with how it was found. A
profile that ``dlcourse plan --calibrate`` has measured takes their place (``calibrate.py``).

    cluster_of("h100", gpus=64)
    cluster_of("h100", gpus=64, memory=94e9, network_bandwidth=25e9)    # with your own numbers
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from dlcourse.words.refusal import Refusal

MOST_GPUS = 10_000_000
SMALLEST, LARGEST = 1e-12, 1e24  # of a constant, in its unit: beyond, products of them overflow
_FILE = Path(__file__).with_name("gpus.json")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Bytes, FLOP/s, bytes/s and seconds; the names are those of ``gpus.json``, which says what
    each is.

    Args:
        gpu: name of the type.
        gpus: in the whole cluster.
        node: GPUs that share the fast links.
        host_memory: bytes of a node's own memory.
        efficiency: measured products of square matrices: (side, share of ``best_matrix``), by
            side. With none, ``kernels.py`` derives it from tiles and waves.

    Raises:
        ValueError: a number that is not positive, or a part of a node too many.
    """

    gpu: str
    gpus: int
    node: int
    memory: float
    peak: float
    best_matrix: float
    sustained_matrix: float
    multiprocessors: int
    bandwidth: float
    flash_forward: float
    flash_backward: float
    flash3_forward: float
    flash3_backward: float
    node_bandwidth: float
    node_efficiency: float
    network_bandwidth: float
    host_bandwidth: float
    host_memory: float
    memory_efficiency: float
    copy_efficiency: float
    permute_efficiency: float
    attention_ramp: float
    network_efficiency: float
    all_to_all_efficiency: float
    kernel_seconds: float
    host_seconds: float
    ring_seconds: float
    node_hop_seconds: float
    network_hop_seconds: float
    point_to_point_seconds: float
    context_bytes: float
    fragmentation: float
    overlap_cost: float
    host_memory_bandwidth: float
    host_gpus: int
    efficiency: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if type(self.gpus) is not int or self.gpus < 1:
            raise Refusal("refusal.gpus", gpus=repr(self.gpus))
        if self.gpus > MOST_GPUS:
            raise Refusal("refusal.gpus.most", gpus=self.gpus, most=MOST_GPUS)
        if type(self.node) is not int or self.node < 1:
            raise Refusal("refusal.node", node=repr(self.node))
        sides = [side for side, _ in self.efficiency]
        if sides != sorted(set(sides)) or any(
            side < 1 or not 0 < share <= 1 for side, share in self.efficiency
        ):
            raise Refusal("refusal.efficiency", value=repr(self.efficiency))
        for field in fields(self):
            if field.name == "efficiency":
                continue
            value = getattr(self, field.name)
            may_be_zero = field.name in ("fragmentation", "overlap_cost", "context_bytes")
            if field.name != "gpu" and not (value > 0 or (may_be_zero and value == 0)):
                raise Refusal("refusal.cluster", name=field.name, value=repr(value))
            if field.name != "gpu" and value and not SMALLEST <= value <= LARGEST:
                limits = {"least": f"{SMALLEST:.0e}", "most": f"{LARGEST:.0e}"}
                raise Refusal("refusal.cluster.far", name=field.name, value=repr(value), **limits)
        if self.gpus > self.node and self.gpus % self.node:
            raise Refusal("refusal.node.whole", gpus=self.gpus, node=self.node)

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.node)

    @property
    def stream(self) -> float:
        """Bytes/s of memory that a kernel reaches."""
        return self.bandwidth * self.memory_efficiency


@cache
def _constants() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))


def gpu_types() -> list[str]:
    """Names of the GPU types that have constants."""
    return list(_constants()["gpus"])


def how_found(gpu: str) -> str:
    """Where the constants of a GPU type come from."""
    return _constants()["gpus"][_known(gpu)]["how"]


def cluster_of(gpu: str, *, gpus: int, **given: Any) -> Cluster:
    """A cluster of one GPU type; ``given`` replaces constants by your own numbers.

    Raises:
        ValueError: an unknown type or constant, or numbers that make no cluster.
    """
    gpu, constants = _known(gpu), _constants()
    common = {name: entry["value"] for name, entry in constants["common"].items()}
    own = {key: v for key, v in constants["gpus"][gpu].items() if key != "how"}
    own.setdefault("host_memory", 1e12)
    if type(gpus) is int and 0 < gpus < own["node"]:
        own["node"] = gpus
    allowed = {field.name for field in fields(Cluster)}
    if unknown := sorted(set(given) - allowed):
        raise ValueError(
            f"{', '.join(unknown)}: no constant of a cluster; there are {sorted(allowed)}"
        )
    return Cluster(**{"gpu": gpu, "gpus": gpus, **common, **own, **given})


def _known(gpu: str) -> str:
    if gpu.lower() not in _constants()["gpus"]:
        raise Refusal("refusal.unknown", name="gpu", value=repr(gpu), known=", ".join(gpu_types()))
    return gpu.lower()


def resized(cluster: Cluster, **changes: Any) -> Cluster:
    """The same cluster with other numbers."""
    return replace(cluster, **changes)
