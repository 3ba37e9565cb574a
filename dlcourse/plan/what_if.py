"""What a little more would change: one GPU, one node, the next memory size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dlcourse.plan.cluster import cluster_of, gpu_types
from dlcourse.plan.cluster_size import usual_node, with_gpus
from dlcourse.plan.job import Job
from dlcourse.plan.planner import Answer, plan
from dlcourse.words.refusal import said


def what_if(answer: Answer) -> dict[str, dict[str, float | str]]:
    """What one more GPU, one more node, or the next memory size would change.

    Each has "gpus", "memory", "tokens_per_second", its ratio "faster" to today's and the
    "batch_tokens" that divide; or "whole_nodes" (GPUs of one) where a single GPU more is none, or
    "refused" with the reason in the language in use.
    """
    job, cluster = answer.job, answer.job.cluster
    now = answer.numbers(answer.fastest)["tokens_per_second"]
    found: dict[str, dict[str, float | str]] = {}
    jobs: dict[str, Callable[[], Job]] = {}
    one_more = cluster.gpus + 1
    if cluster.nodes > 1 or cluster.gpus >= usual_node(cluster):
        found["gpu"] = {"gpus": one_more, "whole_nodes": cluster.node}
    else:
        jobs["gpu"] = partial(with_gpus, job, one_more, node=one_more)
    node = usual_node(cluster)
    more_nodes = -(-cluster.gpus // node) * node + node
    jobs["node"] = partial(with_gpus, job, more_nodes, node=node)
    sizes = sorted({cluster_of(gpu, gpus=1).memory for gpu in gpu_types()})
    if larger := [size for size in sizes if size > 1.1 * cluster.memory]:
        larger_cluster = replace(cluster, memory=larger[0])
        jobs["memory"] = partial(replace, job, cluster=larger_cluster)
    for name, make in jobs.items():
        try:  # the largest cluster has no larger one
            other = make()
            best = plan(other)
        except ValueError as error:
            found[name] = {"refused": str(said(error))}
            continue
        rate = best.numbers(best.fastest)["tokens_per_second"]
        found[name] = {
            "gpus": other.cluster.gpus,
            "memory": other.cluster.memory,
            "tokens_per_second": rate,
            "faster": rate / now,
            "batch_tokens": other.batch_tokens,
        }
    return found
