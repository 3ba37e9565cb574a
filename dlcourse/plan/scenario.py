"""A task for a planner of flesh and blood: a model, GPUs for rent, a deadline, a budget.

    task = Scenario(name="chat", model="llama-3-8b", gpu="h100", most=128, tokens=2e11,
                    batch_tokens=4_194_304, days=21, dollars=90_000, price=2.5)
    score(task, 64, Layout(data=64, stage=2)).faults

A plan is a number of GPUs and a layout. It is judged by ``planner.py``: bytes of the fullest rank,
days from start to end, dollars. ``cheapest`` is the best that there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcourse.figures.tables import Table
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.cluster_size import MOST
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import rank_memory
from dlcourse.plan.layouts import Layout, Layouts
from dlcourse.plan.planner import judge, plan
from dlcourse.plan.report import layout_text
from dlcourse.words.strings import t


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is to be trained, by when, for how much.

    Args:
        model: one of ``published_models()``.
        gpu: one of ``gpu_types()``; at most ``most`` of them can be had.
        tokens: of the whole training; ``batch_tokens`` of a step.
        days: from start to end.
        dollars: for all GPUs together; ``price`` is of one for an hour.
        useful: share of the time in which training advances; the rest is failures and restarts.

    Raises:
        ValueError: a number that is not positive, or a share above 1.
    """

    name: str
    model: str
    gpu: str
    most: int
    tokens: float
    batch_tokens: int
    days: float
    dollars: float
    price: float
    sequence: int = 4096
    useful: float = 0.9

    def __post_init__(self) -> None:
        for name in ("most", "tokens", "batch_tokens", "days", "dollars", "price", "useful"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: give a positive number")
        if self.useful > 1:
            raise ValueError(f"useful={self.useful}: a share is at most 1")

    def job(self, gpus: int) -> Job:
        """The training on so many of the GPUs, in whole nodes.

        Raises:
            ValueError: more than can be had, or no whole nodes.
        """
        if type(gpus) is int and gpus > self.most:
            raise ValueError(f"gpus={gpus}: there are {self.most}")
        return Job(
            shape=published_model(self.model),
            cluster=cluster_of(self.gpu, gpus=gpus),
            batch_tokens=self.batch_tokens,
            sequence=self.sequence,
        )

    def sizes(self) -> list[int]:
        """Numbers of GPUs that can be rented: 1, 2, 4, then whole nodes."""
        node = cluster_of(self.gpu, gpus=MOST).node
        parts = [n for n in (1, 2, 4) if n < node and n <= self.most]
        return parts + list(range(node, self.most + 1, node))


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a plan comes to. ``stage`` is the pipeline's fullest, "first", "last" or "only"."""

    scenario: Scenario
    gpus: int
    layout: Layout
    memory: float
    limit: float
    host_over: float
    stage: str
    days: float
    dollars: float

    @property
    def faults(self) -> list[tuple[str, dict[str, str]]]:
        """Names of what is wrong, "memory", "host", "late" or "dear", each with its numbers."""
        task = self.scenario
        found: list[tuple[str, dict[str, str]]] = []
        if self.memory > self.limit:
            gb = {"held": f"{self.memory / 1e9:,.1f}", "limit": f"{self.limit / 1e9:,.1f}"}
            found.append((f"memory_{self.stage}", gb))
        if self.host_over > 0:
            found.append(("host", {"over": f"{self.host_over / 1e9:,.1f}"}))
        if self.days > task.days:
            found.append(
                ("late", {"over": f"{self.days - task.days:,.1f}", "days": f"{task.days:g}"})
            )
        if self.dollars > task.dollars:
            over = self.dollars - task.dollars
            found.append(("dear", {"over": f"{over:,.0f}", "dollars": f"{task.dollars:,.0f}"}))
        return found


def score(scenario: Scenario, gpus: int, layout: Layout) -> Score:
    """Judge a plan.

    Raises:
        ValueError: a layout that does not divide the job, or GPUs that cannot be had.
    """
    job = scenario.job(gpus)
    answer = judge(job, layout)
    one = Layouts.of([layout])
    ends = [float(rank_memory(job, one, end)["total"][0]) for end in ("first", "last")]
    fuller = "last" if ends[1] > ends[0] else "first"
    days = answer.numbers(0, tokens=scenario.tokens)["days"] / scenario.useful
    return Score(
        scenario=scenario,
        gpus=gpus,
        layout=layout,
        memory=max(ends),
        limit=job.cluster.memory,
        host_over=float(answer.memory["host"][0]) - job.cluster.host_memory,
        stage=fuller if layout.pipeline > 1 else "only",
        days=days,
        dollars=days * 24 * gpus * scenario.price,
    )


def cheapest(scenario: Scenario) -> Score | None:
    """The plan that meets the deadline for the fewest dollars; None where none meets it."""
    found: Score | None = None
    for gpus in scenario.sizes():
        try:
            answer = plan(scenario.job(gpus))
        except ValueError:  # does not divide, or does not fit
            continue
        one = score(scenario, gpus, answer.layouts[answer.fastest])
        if one.days <= scenario.days and (found is None or one.dollars < found.dollars):
            found = one
    return found


def show_plan(scenario: Scenario, submitted: Any) -> Table:
    """A plan, (gpus, layout), beside what is asked for.

    Raises:
        ValueError: no such pair, or a layout that does not divide the job.
    """
    gpus, layout = _pair(submitted)
    found = score(scenario, gpus, layout)
    wrong = {name.partition("_")[0] for name, _ in found.faults}
    rows = [
        ("memory", f"{found.memory / 1e9:,.1f} GB", f"{found.limit / 1e9:,.1f} GB"),
        ("late", f"{found.days:,.1f}", f"{scenario.days:g}"),
        ("dear", f"{found.dollars:,.0f}", f"{scenario.dollars:,.0f}"),
    ]
    return Table(
        [t(f"scenario.{key}") for key in ("what", "plan", "limit", "verdict")],
        [
            [t(f"scenario.row.{key}"), got, most, t(f"scenario.{'no' if key in wrong else 'yes'}")]
            for key, got, most in rows
        ],
        caption=t("scenario.caption", name=scenario.name, gpus=gpus, layout=layout_text(layout)),
    )


def _pair(submitted: Any) -> tuple[int, Layout]:
    pair = submitted if isinstance(submitted, tuple | list) else ()
    if len(pair) != 2 or not isinstance(pair[0], int | np.integer) or type(pair[1]) is not Layout:
        raise ValueError(f"a plan is (number of GPUs, Layout), and this is {submitted!r}")
    return int(pair[0]), pair[1]
