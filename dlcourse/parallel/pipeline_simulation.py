"""What a pipeline schedule will do, before any rank runs it: its deadlocks, its time, its memory.

Three rules are all there is. A forward needs the forward of the stage before. A backward needs
the backward of the stage behind (its B or BW), and the forward of its own stage. A W needs its B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from dlcourse.parallel.pipeline_schedules import Action, Schedule

Span = tuple[float, float, Action]  # start, end, what


@dataclass(frozen=True)
class Gantt:
    """When each rank did what, predicted or measured. Two people who say "bubble" may mean two
    numbers: the idle time over the *whole* time, or over the *ideal* time. Both are here.
    """

    spans: list[list[Span]]  # for each rank, in order

    @property
    def total(self) -> float:
        """From the first start to the last end, in the unit of the times that were given."""
        return max(row[-1][1] for row in self.spans) - min(row[0][0] for row in self.spans)

    @property
    def busy(self) -> list[float]:
        """Working time of each rank."""
        return [sum(end - start for start, end, _ in row) for row in self.spans]

    @property
    def idle_over_total(self) -> float:
        """Mean idle share of the ranks. Of GPipe and 1F1B in closed form: ``formulas.bubbles``."""
        return 1 - sum(self.busy) / len(self.busy) / self.total

    @property
    def idle_over_ideal(self) -> float:
        """How much longer than without idle time."""
        return self.total / (sum(self.busy) / len(self.busy)) - 1

    @property
    def idle_inside(self) -> float:
        """Mean share of idle time between a rank's own first and last action: what remains where
        a rank may begin the next step while others still end this one. In that sense zero-bubble
        schedules have none.
        """
        own = [row[-1][1] - row[0][0] for row in self.spans]
        return 1 - sum(self.busy) / sum(own)

    def in_flight(self, rank: int) -> list[tuple[float, int]]:
        """(time, activations alive from then on): a forward keeps one, until its BW or W ends."""
        changes = [(start, 1) for start, _, action in self.spans[rank] if action.kind == "F"]
        changes += [(end, -1) for _, end, a in self.spans[rank] if a.kind in ("W", "BW")]
        alive, series = 0, []
        for time, change in sorted(changes):  # at one moment, what ends goes first
            alive += change
            series.append((time, alive))
        return series

    @property
    def peak_in_flight(self) -> list[int]:
        """The largest number of live activations in each rank, one for a stage and micro-batch."""
        return [max(alive for _, alive in self.in_flight(r)) for r in range(len(self.spans))]

    def text(self) -> str:
        """A drawing: a line for each rank, a column for each unit of time (times must be whole).

        Small letters are chunk 1, a dot is idle time. Chunks beyond 1 are not told apart.
        """
        lines = []
        for rank, row in enumerate(self.spans):
            columns = [" ."] * round(self.total)
            for start, end, action in row:
                each = round(end - start) // len(action.kind)  # a BW is a B and a W
                for i, kind in enumerate(kind for kind in action.kind for _ in range(each)):
                    name = f"{kind}{action.micro_batch}"
                    columns[round(start) + i] = name.lower() if action.chunk else name
            lines.append(f"rank {rank}  " + " ".join(columns))
        return "\n".join(lines)

    def stage_times(self, schedule: Schedule) -> dict[str, list[float]]:
        """Mean time of F, B and W of each stage, for ``simulate``: ``t_F``, ``t_B`` and ``t_W``.

        A stage's BW counts half as B and half as W, where it has no B and W of their own.
        """
        found: dict[tuple[str, int], list[float]] = {}
        for rank, row in enumerate(self.spans):
            for start, end, action in row:
                stage = schedule.stage(rank, action.chunk)
                found.setdefault((action.kind, stage), []).append(end - start)
        mean = {key: sum(times) / len(times) for key, times in found.items()}
        return {
            f"t_{kind}": [
                mean.get((kind, stage), mean.get(("BW", stage), 0.0) / 2)
                for stage in range(schedule.num_stages)
            ]
            for kind in "FBW"
        }


def validate(schedule: Schedule) -> None:
    """Raise a ValueError that says what is missing, or what deadlocks, where, and why."""
    problems = _incomplete(schedule)
    if problems:
        raise ValueError(f"schedule {schedule.name!r} is not complete: " + "; ".join(problems[:4]))
    _order(schedule)


def simulate(
    schedule: Schedule,
    *,
    t_F: float | Sequence[float] = 1.0,
    t_B: float | Sequence[float] = 1.0,
    t_W: float | Sequence[float] = 1.0,
    t_send: float = 0.0,
) -> Gantt:
    """When everything would happen, with each rank doing its actions as early as it can.

    Args:
        t_F, t_B, t_W: time of a stage for one micro-batch: one number, or one for each stage.
            BW takes t_B + t_W.
        t_send: from the end of an action until the next rank has its result. It delays the
            receiver only: the sender goes on.

    Raises:
        ValueError: as ``validate``; or as many times as there are not stages.
    """
    times: dict[str, list[float]] = {}
    for kind, given in (("F", t_F), ("B", t_B), ("W", t_W)):
        times[kind] = [given] * schedule.num_stages if isinstance(given, int | float) else [*given]
        if len(times[kind]) != schedule.num_stages:
            raise ValueError(
                f"t_{kind} has {len(times[kind])} times for {schedule.num_stages} stages: "
                "give one number, or one for each stage"
            )
    validate(schedule)
    ends: dict[tuple[int, Action], float] = {}
    spans: list[list[Span]] = [[] for _ in schedule.ranks]
    for rank, action in _order(schedule):
        start = spans[rank][-1][1] if spans[rank] else 0.0
        for other, needed in _needs(schedule, rank, action):
            start = max(start, ends[other, needed] + (t_send if other != rank else 0.0))
        stage = schedule.stage(rank, action.chunk)
        end = start + sum(times[kind][stage] for kind in action.kind)
        ends[rank, action] = end
        spans[rank].append((start, end, action))
    return Gantt(spans)


def message_time(schedule: Schedule, gantt: Gantt) -> float:
    """``t_send`` of a measured Gantt: how long a rank that waited for a message began after the
    other rank had made it (median; 0 where no rank waited).
    """
    ends = {(rank, a): end for rank, row in enumerate(gantt.spans) for _, end, a in row}
    gaps = []
    for rank, row in enumerate(gantt.spans):
        free = 0.0
        for start, end, action in row:
            made = [ends[n] for n in _needs(schedule, rank, action) if n[0] != rank]
            if made and made[0] > free:
                gaps.append(start - made[0])
            free = end
    return median(gaps) if gaps else 0.0


def _needs(schedule: Schedule, rank: int, action: Action) -> list[tuple[int, Action]]:
    """What must be done before an action, and in which rank."""
    kind, micro_batch, chunk = action
    stage = schedule.stage(rank, chunk)
    if kind == "W":
        return [(rank, Action("B", micro_batch, chunk))]
    if kind == "F":
        if stage == 0:
            return []
        before, chunk = schedule.where(stage - 1)
        return [(before, Action("F", micro_batch, chunk))]
    needed = [(rank, Action("F", micro_batch, chunk))]
    if stage < schedule.num_stages - 1:
        behind, chunk = schedule.where(stage + 1)
        whole = Action("BW", micro_batch, chunk)
        part = Action("B", micro_batch, chunk)
        needed.append((behind, whole if whole in schedule.ranks[behind] else part))
    return needed


def _incomplete(schedule: Schedule) -> list[str]:
    """Actions that are missing or too many: one F, and one BW or one B and one W, of each."""
    problems = []
    for rank, row in enumerate(schedule.ranks):
        counts = Counter(row)
        for chunk in range(schedule.num_chunks):
            for i in range(schedule.num_micro_batches):
                f, b, w, bw = (
                    counts.pop(Action(kind, i, chunk), 0) for kind in ("F", "B", "W", "BW")
                )
                who = f"rank {rank}: micro-batch {i}" + f" in chunk {chunk}" * (chunk > 0)
                if f != 1:
                    problems.append(f"{who} has {f} F and needs 1")
                if (b, w, bw) not in ((1, 1, 0), (0, 0, 1)):
                    problems.append(
                        f"{who} has {b} B, {w} W, {bw} BW and needs one BW, or one B and one W"
                    )
        problems += [f"rank {rank} has {action}, which no stage has" for action in counts]
    return problems


def _order(schedule: Schedule) -> list[tuple[int, Action]]:
    """All actions in an order in which they can happen; ValueError where they cannot."""
    done: set[tuple[int, Action]] = set()
    order: list[tuple[int, Action]] = []
    needs = {
        (rank, action): _needs(schedule, rank, action)
        for rank, row in enumerate(schedule.ranks)
        for action in row
    }
    at = [0] * schedule.num_ranks
    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(schedule.ranks):
            while at[rank] < len(row) and done.issuperset(needs[rank, row[at[rank]]]):
                done.add((rank, row[at[rank]]))
                order.append((rank, row[at[rank]]))
                at[rank] += 1
                moved = True
    if len(order) < sum(map(len, schedule.ranks)):
        raise ValueError(_deadlock(schedule, at, done, needs, len(order)))
    return order


def _deadlock(
    schedule: Schedule,
    at: Sequence[int],
    done: set[tuple[int, Action]],
    needs: Mapping[tuple[int, Action], list[tuple[int, Action]]],
    num_done: int,
) -> str:
    """Follow who waits for whom until a rank comes up again: that circle is the reason."""
    rank = next(r for r, row in enumerate(schedule.ranks) if at[r] < len(row))
    chain: list[int] = []
    wanted: dict[int, tuple[int, Action]] = {}
    while rank not in chain:
        chain.append(rank)
        wanted[rank] = next(n for n in needs[rank, schedule.ranks[rank][at[rank]]] if n not in done)
        rank = wanted[rank][0]
    circle = chain[chain.index(rank) :]
    total = sum(map(len, schedule.ranks))
    lines = [f"schedule {schedule.name!r} deadlocks after {num_done} of {total} actions:"]
    for rank in circle:
        other, action = wanted[rank]
        position = schedule.ranks[other].index(action)
        now = schedule.ranks[rank][at[rank]]
        what = "its own" if other == rank else f"rank {other}'s"
        lines.append(
            f"  rank {rank} stands before {now} (its action {at[rank]}) and needs {what} {action}, "
            f"which comes as action {position}"
        )
    last = circle[-1]
    other, action = wanted[last]
    now = schedule.ranks[other][at[other]]
    lines.append(f"Nothing can move: in rank {other}, {action} has to come before {now}.")
    return "\n".join(lines)
