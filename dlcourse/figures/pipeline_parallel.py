"""The figures and tables of lesson 05, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import bars_figure
from dlcourse.figures.colors import CATEGORIES
from dlcourse.figures.gantt import KINDS, gantt_figure
from dlcourse.figures.held import Together, held, largest
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.figures.picture import Picture, gantt_lanes
from dlcourse.figures.tables import Table
from dlcourse.parallel.pipeline_schedules import SCHEDULES, Schedule, interleaved, make_schedule
from dlcourse.parallel.pipeline_simulation import Gantt, simulate
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

NUM_RANKS, MICRO_BATCHES = 4, 8  # of the lesson
LEARNING_RATE = 1e-3
# What the slider calls a schedule whose number of chunks is free -> its name and the chunks
_WITH_CHUNKS = {f"interleaved_{count}": ("interleaved", count) for count in (2, 4)}
Peaks = Mapping[tuple[str, int], Sequence[int]]  # bytes of activations, of each rank


def check_ranks(num_ranks: int) -> None:
    """Refuse a number of ranks for which one of the lesson's schedules cannot be written.

    Raises:
        ValueError: before any rank starts; says which numbers do.
    """
    fit = [n for n in range(2, MICRO_BATCHES // 2 + 1) if MICRO_BATCHES % n == 0]
    if num_ranks not in fit:
        raise ValueError(
            f"num_ranks={num_ranks}: interleaved needs a divisor of the lesson's {MICRO_BATCHES} "
            "micro-batches, the V schedules two micro-batches for each rank, and a pipeline two "
            f"ranks, so give {' or '.join(map(str, fit))}"
        )


def simulated(
    schedule: str, ranks: int, micro_batches: int, chunks: int, backward: float
) -> tuple[Schedule, Gantt]:
    """A schedule and what it will do: F of a rank's whole part takes 1, B and W together more.

    chunks: of interleaved; the others have as many as they have.
    backward: time of a backward over that of a forward.
    """
    made = (
        interleaved(ranks, micro_batches, chunks)
        if schedule == "interleaved"
        else make_schedule(schedule, ranks, micro_batches)
    )
    part = 1 / made.num_chunks
    half = part * backward / 2
    return made, simulate(made, t_F=part, t_B=half, t_W=half)


def pipeline_picture(schedule: str, ranks: int, micro_batches: int, backward: int) -> Picture:
    """Who works when, how long a rank is idle, and how many activations it holds; simulated.

    Args:
        schedule: its name; interleaved's with 2 or 4 chunks, such as "interleaved_4".
    """
    name, chunks = _WITH_CHUNKS.get(schedule, (schedule, 2))
    made, gantt = simulated(name, ranks, micro_batches, chunks, backward)
    held_by = [peak / made.num_chunks for peak in gantt.peak_in_flight]
    title = t(
        "pipeline_parallel.explore.title",
        name=name,
        chunks=made.num_chunks,
        idle=idle(gantt),
        most=f"{max(held_by):g}",
    )
    lanes = {
        t("figure.rank", rank=rank): [
            (start, end, a.kind, str(a.micro_batch), a.chunk > 0) for start, end, a in row
        ]
        for rank, row in enumerate(gantt.spans)
    }
    texts = [t("pipeline_parallel.explore.held", held=f"{value:g}") for value in held_by]
    used = {action.kind for row in made.ranks for action in row}
    kinds = {kind: color for kind, color in KINDS.items() if kind in used}
    legend = {t(f"pipeline_parallel.kind.{kind}"): color for kind, color in kinds.items()}
    if made.num_chunks == 2:
        legend[t("pipeline_parallel.kind.thin")] = KINDS["F"]
    return gantt_lanes(
        lanes,
        title=title,
        axis=t("pipeline_parallel.explore.axis"),
        colors=KINDS,
        texts=texts,
        legend=legend,
    )


def idle(gantt: Gantt) -> str:
    """Idle over total, in words."""
    return f"{gantt.idle_over_total:.1%}"


def show_whole() -> go.Figure:
    """One batch in one piece: three of four ranks wait."""
    whole = simulate(Schedule.parse(["F0 BW0"] * NUM_RANKS))
    title = t("pipeline_parallel.gantt.one", name="F0 BW0", idle=idle(whole))
    return gantt_figure({"": whole.spans}, title=title)


def show_both(name: str, predicted: Gantt, measured: Gantt) -> go.Figure:
    """A schedule simulated and measured, on one axis of time."""
    panels = {
        t("pipeline_parallel.predicted"): predicted.spans,
        t("pipeline_parallel.measured"): measured.spans,
    }
    values = {"predicted": idle(predicted), "measured": idle(measured)}
    title = t("pipeline_parallel.gantt.both", name=name, **values)
    return gantt_figure(panels, title=title, seconds=True)


def show_bubbles() -> Table:
    """GPipe's bubble over the number of micro-batches, in both definitions."""
    rows = []
    for count in (1, 4, 8, 16, 64):
        gantt = simulate(make_schedule("gpipe", NUM_RANKS, count))
        rows.append([count, idle(gantt), f"{gantt.idle_over_ideal:.1%}"])
    keys = ("axis.micro_batches", "table.total", "table.ideal")
    return Table([t(f"pipeline_parallel.{key}") for key in keys], rows)


def show_same(
    losses: Sequence[Sequence[float]], alone: Sequence[float], apart: Sequence[float]
) -> Together:
    """That the pipeline trains what one process trains: losses, and the parameters."""
    assert len(set(map(tuple, losses))) == 1, "the ranks tell different losses"
    keys = ("table.step", "table.pipeline", "table.alone")
    rows = [
        [step + 1, f"{ours:.4f}", f"{theirs:.4f}"]
        for step, (ours, theirs) in enumerate(zip(losses[0], alone, strict=True))
    ]
    return Together(
        Table([t(f"pipeline_parallel.{key}") for key in keys], rows),
        held(
            t("pipeline_parallel.held.same"),
            largest(apart),
            allowed=0.05 * LEARNING_RATE,
            because=t("pipeline_parallel.held.same.because", lr=f"{LEARNING_RATE:.0e}"),
        ),
    )


def show_activations(peaks: Peaks) -> go.Figure:
    """Largest activations of each rank in GPipe and 1F1B, beside what the schedules promise."""
    kept: list[float] = []
    labels: list[str] = []
    one, two = peaks["gpipe", 1], peaks["gpipe", 2]
    for name in ("gpipe", "1f1b"):
        flight = simulate(make_schedule(name, len(one), MICRO_BATCHES)).peak_in_flight
        kept += [a + (n - 1) * (b - a) for n, a, b in zip(flight, one, two, strict=True)]
        labels += [f"{name}, {t('figure.rank', rank=rank)}" for rank in range(len(one))]
    whole, less = peaks["gpipe", MICRO_BATCHES], peaks["1f1b", MICRO_BATCHES]
    return bars_figure(
        labels,
        {
            t("pipeline_parallel.predicted"): kept,
            t("pipeline_parallel.measured"): [*whole, *less],
        },
        title=t("pipeline_parallel.activations", ratio=f"{whole[0] / less[0]:.2g}"),
        axis=t("pipeline_parallel.activations.axis"),
        unit="bytes",
        colors=[CATEGORIES["other"], CATEGORIES["activations"]],
    )


def show_six(found: Mapping[str, Sequence[Gantt]]) -> Table:
    """All schedules: idle by formula, simulated with this run's times, and measured.

    found: name -> simulated and measured.
    """
    rows = []
    for name, (predicted, measured) in found.items():
        assert measured.total < 2 * predicted.total, f"{name} took {measured.total} s"
        _, paper = simulated(name, len(measured.spans), MICRO_BATCHES, 2, 2)
        row = [name, idle(paper), idle(predicted), idle(measured), f"{paper.idle_inside:.1%}"]
        rows.append(row)
    keys = ("schedule", "formula", "predicted", "measured", "inside")
    return Table([t(f"pipeline_parallel.table.{key}") for key in keys], rows)


def show_ledger(peaks: Peaks) -> Table:
    """Activations of each rank in units of a micro-batch: promised, and by the ledger."""
    middle = min(1, len(peaks["gpipe", 1]) - 2)  # of two ranks the first: the last holds logits
    one, two = (peaks["gpipe", count][middle] for count in (1, 2))
    rows = []
    for name in SCHEDULES:
        made, gantt = simulated(name, len(peaks[name, MICRO_BATCHES]), MICRO_BATCHES, 2, 2)
        flight = [count / made.num_chunks for count in gantt.peak_in_flight]
        units = [1 + (peak - one) / (two - one) for peak in peaks[name, MICRO_BATCHES]]
        off = max(abs(a - b) for a, b in zip(units[:-1], flight[:-1], strict=True))
        assert off < 0.3, f"{name}: {units} of {flight}"
        rows.append([name, *(", ".join(f"{n:.1f}" for n in row) for row in (flight, units))])
    keys = ("schedule", "flight", "ledger")
    return Table([t(f"pipeline_parallel.table.{key}") for key in keys], rows)


def show_real(gantt: Gantt, cores: float) -> go.Figure:
    """The real GPT on this machine, whose cores are fewer than its ranks."""
    title = t("pipeline_parallel.gantt.cores", cores=f"{cores:g}", ranks=len(gantt.spans))
    return gantt_figure({"1F1B": gantt.spans}, title=title, seconds=True)


def show_libraries(
    found: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], absent: Sequence[str]
) -> Table:
    """The same step of ours and of libraries: one loss, time, messages, memory."""
    rows = {
        f"{t('pipeline_parallel.ours') if kind == 'ours' else kind} {name}": ranks
        for (kind, name), ranks in found.items()
    }
    losses = {f"{max(rank['loss'] for rank in ranks):.3f}" for ranks in found.values()}
    assert len(losses) == 1, f"losses differ: {losses}"
    return library_comparison_table(rows, reference="torch 1f1b", loss=max, absent=absent)


def show_twice(found: Sequence[Sequence[Sequence[float]]]) -> Table:
    """Gradients divided by the number of micro-batches once and twice, under AdamW and SGD."""
    (adam, sgd), (adam_2, sgd_2) = found
    assert abs(adam[1] - adam_2[1]) < 0.02 * adam[1] and sgd_2[1] > sgd[1] + 0.1, found
    rows = [
        [t(f"pipeline_parallel.scaled.{key}"), *(f"{x:.3g}" for x in (a[0], a[1], s[1]))]
        for key, (a, s) in zip(("once", "twice"), found, strict=True)
    ]
    keys = ("scaled.who", "scaled", "scaled.adam", "scaled.sgd")
    return Table([t(f"pipeline_parallel.{key}") for key in keys], rows)


def show_message() -> Table:
    """A message between stages of Llama 3 405B, whole and scattered over 8 tensor ranks."""
    sequence, width, card = 8192, 16384, 50e9
    whole = sequence * width * 2
    rows = [
        [
            t(f"pipeline_parallel.message.{key}"),
            f"{size / 2**20:.0f} MiB",
            f"{1e3 * size / card:.1f} ms",
        ]
        for key, size in (("whole", whole), ("eighth", whole / 8))
    ]
    keys = ("message", "message.bytes", "message.time")
    return Table([t(f"pipeline_parallel.{key}") for key in keys], rows)


def figures_of_b3(
    apart: Sequence[float], peaks: Peaks, parameters: Sequence[int]
) -> dict[str, float]:
    """What this lesson measured for claim B3, by the names of its figures."""
    held_by = peaks["1f1b", MICRO_BATCHES]
    whole = simulate(Schedule.parse(["F0 BW0"] * len(held_by)))
    eight = simulate(make_schedule("1f1b", len(held_by), MICRO_BATCHES))
    return {
        "apart": 100 * max(apart) / LEARNING_RATE,
        "idle_1": 100 * whole.idle_over_total,
        "idle_8": 100 * eight.idle_over_total,
        "activations": held_by[0] / held_by[-1],
        "parameters": max(parameters) / min(parameters),
    }
