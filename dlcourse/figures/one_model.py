"""The figures and tables of lesson 00: four processes that train one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.colors import PLAIN, rank_color
from dlcourse.figures.held import Together, held, largest
from dlcourse.figures.picture import Picture, bars
from dlcourse.figures.process_memory import process_memory_figure
from dlcourse.figures.tables import Table
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import digits, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

GRADIENT = 4 * 2**20  # bytes of the lesson's gradient: 2**20 numbers in float32
BATCH = 64  # sequences that the ranks of the slider share

Path = Sequence[float]  # the slope before the first step, and after each


def show_paths(alone: Sequence[Path], together: Sequence[Path]) -> go.Figure:
    """The slope that each rank learns alone, and the one that all learn together, step by step."""
    assert len({path[-1] for path in together}) == 1, "the ranks have drifted apart"
    series = {t("one_model.paths.alone", rank=rank): path for rank, path in enumerate(alone)}
    colors = {name: rank_color(rank) for rank, name in enumerate(series)}
    all_of_them = t("one_model.paths.together")
    series[all_of_them], colors[all_of_them] = together[0], PLAIN
    slopes = ", ".join(digits(round(path[-1], 2)) for path in alone)
    words = {"alone": slopes, "together": digits(round(together[0][-1], 2))}
    return sweep_figure(
        range(len(together[0])),
        series,
        x_title=t("one_model.paths.step"),
        y_title=t("one_model.paths.slope"),
        title=t("one_model.paths.title", **words),
        colors=colors,
    )


def show_one_model(slopes: Sequence[Mapping[str, float]]) -> Together:
    """The slope by one process that has all points, by our lines and by DDP.

    Args:
        slopes: of each rank, a slope for each of the ways, "one" among them.
    """
    one = slopes[0]["one"]
    rows = []
    for way in slopes[0]:
        of_ranks = [of_rank[way] for of_rank in slopes]
        apart, off = max(of_ranks) - min(of_ranks), largest(abs(slope - one) for slope in of_ranks)
        name = t(f"one_model.ways.{way}")
        rows.append([name, f"{of_ranks[0]:.6f}", f"{apart:.1g}", f"{off:.1g}"])
    heads = [t(f"one_model.ways.{name}") for name in ("way", "slope", "ranks", "off")]
    off = largest(abs(slope - one) for of_rank in slopes for slope in of_rank.values())
    what, because = t("one_model.held"), t("one_model.held.because")
    return Together(Table(heads, rows), held(what, off, allowed=1e-5, because=because))


def bytes_of_a_rank(run: Run, counted: Sequence[Sequence[int]]) -> float:
    """Bytes that a rank sent, by the system's count; by theory where the system has none.

    Args:
        counted: of each rank, one count of its own connections. There is none on macOS, and next
            to nothing where GPUs exchange data without TCP.
    """
    theory = float(run.comm.ranks[0]["wire_bytes"])
    most = float(max(of_rank[0] for of_rank in counted))
    if most < theory / 2:
        return theory
    assert 0.99 * theory <= most <= 1.05 * theory, (most, theory)
    return most


def work_and_bytes(ranks: int) -> Picture:
    """What each of some ranks computes and sends in a step, in percent of one process's.

    Work is a share of the batch of 64 sequences; what is sent, a multiple of the 4 MiB gradient.
    """
    share, sent = BATCH / ranks, wire_bytes("all_reduce", GRADIENT, ranks)
    work, wire = t("one_model.explore.work"), t("one_model.explore.sent")
    words = {"ranks": f"{ranks}", "share": digits(share), "sent": human_bytes(sent)}
    key = "one_model.explore.one" if ranks == 1 else "one_model.explore.title"
    return bars(
        {work: 100 / ranks, wire: 100 * sent / GRADIENT},
        title=t(key, None, **words),
        axis=t("one_model.explore.axis"),
        limit=200,
        texts={
            work: t("one_model.explore.sequences", share=words["share"], batch=BATCH),
            wire: t("one_model.explore.times", sent=words["sent"], times=f"{sent / GRADIENT:.3g}"),
        },
    )


def show_memory(resident: Sequence[int], together: int) -> go.Figure:
    """Memory of the fullest rank times their number, beside what all take together."""
    one = max(resident)
    assert together < len(resident) * one, "the ranks share nothing"
    return process_memory_figure(one, together, len(resident))
