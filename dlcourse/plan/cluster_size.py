"""The same job on more or fewer GPUs: the smallest cluster that would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlcourse.plan.cluster import Cluster, cluster_of, gpu_types
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import memory
from dlcourse.plan.layout_space import all_layouts, nearest_batch

MOST = 65536  # GPUs that are looked at


def smallest_cluster(job: Job) -> int | None:
    """Fewest GPUs of the same type, in whole nodes (or a part of one), on which a layout fits.

    The batch is the nearest that divides. None: not up to 65,536.
    """
    node = max(job.cluster.node, usual_node(job.cluster))
    sizes = [d for d in (1, 2, 4) if d < node] + [node]
    while sizes[-1] < MOST:
        sizes.append(2 * sizes[-1])
    found = next((n for n in sizes if _fits_on(job, n, node)), None)
    if found is None or found <= 2 * node:
        return found
    between = range(found // 2 // node + 1, found // node)  # whole nodes below it
    few = [n * node for n in between][:: max(1, len(between) // 16)]
    return next((n for n in few if _fits_on(job, n, node)), found)


def usual_node(cluster: Cluster) -> int:
    known = cluster.gpu in gpu_types()
    return cluster_of(cluster.gpu, gpus=MOST).node if known else cluster.node


def offload_needed(job: Job, gpus: int) -> bool:
    """Whether on so many GPUs no layout fits that leaves the optimizer where it is."""
    node = max(job.cluster.node, usual_node(job.cluster))
    return not _fits_on(job, gpus, node, offload=["none"])


def _fits_on(job: Job, gpus: int, node: int, **only: Sequence[str]) -> bool:
    try:
        larger = with_gpus(job, gpus, node=min(node, gpus))
        layouts = all_layouts(larger, **only)
    except ValueError:
        return False
    held = memory(larger, layouts)
    cluster = larger.cluster
    return bool(((held["total"] <= cluster.memory) & (held["host"] <= cluster.host_memory)).any())


def with_gpus(job: Job, gpus: int, *, node: int | None = None) -> Job:
    """The same job on more or fewer GPUs; its batch is the nearest that some layout divides."""
    cluster = replace(job.cluster, gpus=gpus, node=node or job.cluster.node)
    same = replace(job, cluster=cluster)
    try:
        all_layouts(same)
    except ValueError:
        return replace(same, batch_tokens=nearest_batch(same))
    return same
