"""How much of a long run is useful where machines fail: checkpoints, restarts, spares, stragglers.

Times are in one unit of your choice, the same in all arguments. Letters of the papers:

    tau    work between two checkpoints: the interval
    delta  time to write one, in which nothing is trained
    R      time from a failure until training goes on from the last checkpoint
    M      mean time between two failures of the job (MTBF)

Goodput is work that counts over the time of the whole run. Failures come at random, without memory:
the times between them are exponential. Others are simulated in ``dlcourse.plan.failures``.

Sources: Young, "A First Order Approximation to the Optimum Checkpoint Interval", CACM 17 (9), 1974;
Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", Future
Generation Computer Systems 22 (3), 2006, equations for his figures 3 to 5, which the tests repeat.
"""

from __future__ import annotations

import math
from statistics import NormalDist

WEIBULL_SHAPES = (0.7, 0.8)  # of times between failures; see dlcourse.plan.failures
_NORMAL = NormalDist()


def check_failures(**times: float) -> None:
    """Refuse what is no time: mean times must be above 0, the others at least 0, none infinite."""
    for name, value in times.items():
        number = isinstance(value, int | float) and math.isfinite(value)
        above = name in ("node_mtbf", "mtbf", "interval")
        if not number or value < 0 or (above and value == 0):
            least = "above 0" if above else "of 0 or more"
            raise ValueError(f"{name}={value!r}: give a time {least}, in the unit of the others")


def check_nodes(nodes: int, spares: int = 0) -> None:
    """Refuse what is no number of machines."""
    for name, value, least in (("nodes", nodes, 1), ("spares", spares, 0)):
        if type(value) is not int or value < least:
            raise ValueError(f"{name}={value!r}: give a whole number of {least} or more")


def check_interval(interval: float, *, checkpoint: float, work: float | None = None) -> None:
    """Refuse checkpoints that take longer than the work they save, and those after the run's end.

    Args:
        work: of the whole run, if it is known.
    """
    check_failures(interval=interval, checkpoint=checkpoint)
    if checkpoint > interval:
        raise ValueError(
            f"checkpoint={checkpoint:g} is longer than interval={interval:g}, the work that it "
            f"saves: give an interval of {checkpoint:g} or more, or a faster checkpoint"
        )
    if work is not None and interval > work:
        raise ValueError(
            f"interval={interval:g} is longer than the run, work={work:g}: no checkpoint would "
            f"ever be written; give an interval of at most {work:g}"
        )


def job_mtbf(node_mtbf: float, nodes: int) -> float:
    """Of a job that one failed node stops: rates add up, so it is an n-th of a node's."""
    check_nodes(nodes)
    check_failures(node_mtbf=node_mtbf)
    return node_mtbf / nodes


def young_interval(checkpoint: float, mtbf: float) -> float:
    """sqrt(2 delta M), Young's: right where checkpoints are short beside M."""
    check_failures(checkpoint=checkpoint, mtbf=mtbf)
    return math.sqrt(2 * checkpoint * mtbf)


def daly_interval(checkpoint: float, mtbf: float, *, order: str = "higher") -> float:
    """Daly's estimates: "first" is Young's less delta; "higher" has two terms more.

    From delta = M/2 on ("first") or 2 M ("higher") both give M.
    """
    if order not in ("first", "higher"):
        raise ValueError(f"order={order!r}: give 'first' or 'higher'")
    young, share = young_interval(checkpoint, mtbf), checkpoint / (2 * mtbf)
    if share >= (0.25 if order == "first" else 1):
        return mtbf
    more = math.sqrt(share) / 3 + share / 9 if order == "higher" else 0.0
    return young * (1 + more) - checkpoint


def best_interval(checkpoint: float, mtbf: float) -> float:
    """The interval of the highest goodput: x = tau / M solves (1 - x) exp(x) = exp(-delta / M).

    That is where the derivative of ``checkpointed_goodput`` is 0. R plays no part in it.
    """
    check_failures(checkpoint=checkpoint, mtbf=mtbf)
    low, high, wanted = 0.0, 1.0, math.exp(-checkpoint / mtbf)
    for _ in range(60):  # halves: 2^-60 of M
        x = (low + high) / 2
        low, high = (x, high) if (1 - x) * math.exp(x) > wanted else (low, x)
    return x * mtbf


def checkpointed_goodput(
    interval: float, *, checkpoint: float, mtbf: float, restart: float = 0.0
) -> float:
    """Exact for exponential failures: tau exp(-R/M) / (M (exp((tau + delta) / M) - 1)).

    A failure may come at any moment, also during a checkpoint or a restart. Source: Daly 2006, his
    complete cost function.
    """
    check_failures(interval=interval, checkpoint=checkpoint, mtbf=mtbf, restart=restart)
    segment = (interval + checkpoint) / mtbf
    if segment + restart / mtbf > 700:  # exp would overflow: no segment is ever finished
        return 0.0
    return interval * math.exp(-restart / mtbf) / (mtbf * math.expm1(segment))


def first_order_goodput(
    interval: float, *, checkpoint: float, mtbf: float, restart: float = 0.0
) -> float:
    """Young's view: 1 - delta / tau - (tau / 2 + R) / M; half an interval is lost in a failure.

    Below 0 where failures come faster than that; then it says nothing.
    """
    check_failures(interval=interval, checkpoint=checkpoint, mtbf=mtbf, restart=restart)
    return 1 - checkpoint / interval - (interval / 2 + restart) / mtbf


def time_shares(
    interval: float, *, checkpoint: float, mtbf: float, restart: float = 0.0
) -> dict[str, float]:
    """What a run's time goes to: "useful", "checkpoint", "restart" and "lost" (done again)."""
    useful = checkpointed_goodput(interval, checkpoint=checkpoint, mtbf=mtbf, restart=restart)
    written = useful * checkpoint / interval
    again = -math.expm1(-restart / mtbf)  # of each time between failures its first R
    return {
        "useful": useful,
        "checkpoint": written,
        "restart": again,
        "lost": max(0.0, 1 - useful - written - again),
    }


def spares_availability(nodes: int, *, spares: int, node_mtbf: float, repair: float) -> float:
    """Share of time in which a job of ``nodes`` has them: at most ``spares`` of all are down.

    Each node fails after ``node_mtbf`` in the mean, at work or not, and is back after ``repair``;
    there are as many hands as nodes. Then nodes are down independently of one another.
    """
    check_nodes(nodes, spares)
    check_failures(node_mtbf=node_mtbf, repair=repair)
    down, total = repair / (node_mtbf + repair), nodes + spares
    if down == 0:
        return 1.0
    terms = [
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * math.log(down)
        + (total - k) * math.log(node_mtbf / (node_mtbf + repair))
        for k in range(spares + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def slowest_of(ranks: int) -> float:
    """Standard deviations above the mean of the slowest of n, where times are normal.

    The integral of 1 - Phi(x)^n from 0 on less that of Phi(x)^n below, by trapezoids of 0.01.
    """
    if type(ranks) is not int or ranks < 1:
        raise ValueError(f"ranks={ranks!r}: give a whole number of 1 or more")
    total = 0.0
    for i in range(-900, 901):
        x = i / 100
        below = _NORMAL.cdf(x) ** ranks
        total += (0.5 * ((1 - below) - below) if i == 0 else 1 - below if i > 0 else -below) / 100
    return total


def step_stretch(ranks: int, *, spread: float) -> float:
    """Time of a synchronous step over a rank's mean: all wait for the slowest of n.

    Args:
        spread: standard deviation of a rank's time over its mean, anew in each step.
    """
    if not 0 <= spread < 1:
        raise ValueError(f"spread={spread!r}: give the deviation over the mean, 0.05 for 5%")
    return 1 + spread * slowest_of(ranks)


def slow_node_odds(nodes: int, *, share: float) -> float:
    """Chance that a job has at least one of the slow machines: 1 - (1 - share)^n.

    One is enough: a synchronous step takes as long as on it.
    """
    check_nodes(nodes)
    if not 0 <= share <= 1:
        raise ValueError(f"share={share!r} of machines: give 0 to 1, 0.01 for 1%")
    return -math.expm1(nodes * math.log1p(-share)) if share < 1 else 1.0


def job_goodput(
    nodes: int,
    *,
    node_mtbf: float,
    checkpoint: float,
    interval: float | None = None,
    restart: float = 0.0,
    spares: int | None = None,
    repair: float = 0.0,
    spread: float = 0.0,
) -> dict[str, float]:
    """What the time of a job of so many nodes goes to: shares of 1.

    Those of ``time_shares``, "waiting" for a node, and "straggling": while it trains, the others
    wait for the slowest node of each step.

    Args:
        interval: of work between checkpoints; None is the best one.
        spares: nodes beside the job's; None is always enough.
        repair: until a failed node is back.
        spread: of a node's steps; see ``step_stretch``.

    Raises:
        ValueError: no nodes, a time below 0, a checkpoint longer than its interval.
    """
    mtbf = job_mtbf(node_mtbf, nodes)
    if interval is None:
        interval = best_interval(checkpoint, mtbf) if checkpoint else mtbf / 1000
    else:
        check_interval(interval, checkpoint=checkpoint)
    there = 1.0
    if spares is not None:
        there = spares_availability(nodes, spares=spares, node_mtbf=node_mtbf, repair=repair)
    shares = time_shares(interval, checkpoint=checkpoint, mtbf=mtbf, restart=restart)
    found = {name: there * share for name, share in shares.items()} | {"waiting": 1 - there}
    useful = found["useful"] / step_stretch(nodes, spread=spread)
    return found | {"useful": useful, "straggling": found["useful"] - useful}
