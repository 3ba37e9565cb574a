"""A plan's days on machines that fail: ``dlcourse plan ... --mtbf-hours 6300``.

The planner's days are those of machines that never fail. Here they are divided by the goodput of
``dlcourse.formulas.goodput``, for the nodes of the plan.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dlcourse.formulas.goodput import (
    best_interval,
    check_failures,
    job_goodput,
    job_mtbf,
)
from dlcourse.plan.planner import Answer
from dlcourse.words.refusal import Refusal

LONGEST = 1e12  # hours, minutes or seconds: beyond, no failure is ever met
MOST_SPARES = 100_000  # nodes: each number of nodes that are down is one term of a sum


@dataclass(frozen=True, kw_only=True)
class Failing:
    """How the machines fail, and what the job does about it.

    Args:
        mtbf_hours: of one node, between two of its failures.
        checkpoint_seconds: in which a checkpoint is written and nothing is trained.
        restart_minutes: from a failure until training goes on; found, replaced, loaded.
        interval_minutes: of work between checkpoints; None is the best one.
        spares: nodes beside the job's, None for always enough; repair_hours: until one is back.

    Raises:
        ValueError: a time below 0, or a checkpoint that takes longer than its interval.
    """

    mtbf_hours: float
    checkpoint_seconds: float = 60.0
    restart_minutes: float = 10.0
    interval_minutes: float | None = None
    spares: int | None = None
    repair_hours: float = 24.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "spares" and value is not None:
                least_zero = field.name not in ("mtbf_hours", "interval_minutes")
                name = "repair" if least_zero else "node_mtbf"
                try:
                    check_failures(**{name: value})
                except ValueError:
                    key = "refusal.not_negative" if least_zero else "refusal.positive"
                    raise Refusal(key, name=field.name, value=repr(value)) from None
                if value > LONGEST:
                    most = f"{LONGEST:.0e}"
                    raise Refusal("refusal.most", name=field.name, value=f"{value:.3g}", most=most)
        if self.spares is not None and (type(self.spares) is not int or self.spares < 0):
            raise Refusal("refusal.whole", name="spares", value=repr(self.spares), least=0)
        if (self.spares or 0) > MOST_SPARES:
            given = {"name": "spares", "value": self.spares}
            raise Refusal("refusal.most", most=MOST_SPARES, **given)
        self.check_interval()

    def check_interval(self, days: float | None = None) -> None:
        """Refuse an interval shorter than its checkpoint, or longer than a run of so many days."""
        if self.interval_minutes is None:
            return
        seconds, minutes = 60 * self.interval_minutes, f"{self.interval_minutes:g}"
        if self.checkpoint_seconds > seconds:
            least, held = f"{self.checkpoint_seconds / 60:g}", f"{self.checkpoint_seconds:g}"
            given = {"minutes": minutes, "checkpoint": held, "least": least}
            raise Refusal("refusal.interval.checkpoint", **given)
        if days and seconds > 86400 * days:
            most = f"{1440 * days:g}"
            raise Refusal("refusal.interval.run", minutes=minutes, most=most)


def with_failures(
    answer: Answer, index: int, failing: Failing, *, tokens: float | None = None
) -> dict[str, float]:
    """Of one layout: how often the job fails, its interval, where its time goes, and its days.

    Returns:
        "job_mtbf_hours", "interval_minutes", "goodput", a share each of "checkpoint", "restart",
        "lost", "waiting"; with ``tokens`` "days" and "gpu_hours", spares among them.

    Raises:
        ValueError: an interval longer than the run.
    """
    cluster = answer.job.cluster
    mtbf = 3600 * job_mtbf(failing.mtbf_hours, cluster.nodes)
    checkpoint = failing.checkpoint_seconds
    interval = best_interval(checkpoint, mtbf)
    if failing.interval_minutes is not None:
        interval = 60 * failing.interval_minutes
    shares = job_goodput(
        cluster.nodes,
        node_mtbf=3600 * failing.mtbf_hours,
        checkpoint=checkpoint,
        interval=interval if failing.interval_minutes is not None else None,
        restart=60 * failing.restart_minutes,
        spares=failing.spares,
        repair=3600 * failing.repair_hours,
    )
    found = {
        "job_mtbf_hours": mtbf / 3600,
        "interval_minutes": interval / 60,
        "goodput": shares.pop("useful"),
        **shares,
    }
    if tokens:
        days = answer.numbers(index, tokens=tokens)["days"]
        failing.check_interval(days)
        if found["goodput"] < 1e-6:
            mtbf_hours = f"{failing.mtbf_hours:g}"
            raise Refusal("refusal.mtbf", mtbf_hours=mtbf_hours, nodes=cluster.nodes)
        nodes = cluster.nodes + (failing.spares or 0)
        found["days"] = days / found["goodput"]
        found["gpu_hours"] = 24 * found["days"] * nodes * cluster.gpus / cluster.nodes
    return found
