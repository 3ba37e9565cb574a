"""The figures and tables of lesson 06, each one call; what they rest on is checked, and said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.corpus import course_folder
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.known import known
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.picture import Picture, stacked_bars
from dlcourse.figures.run import timeline_figure
from dlcourse.figures.tables import Table
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.recipe import STAGES, Recipe
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.states import CATEGORIES, state_bytes
from dlcourse.formulas.traffic import zero_bytes
from dlcourse.words.strings import t

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

CONFIG = GPTConfig()  # the model of the lesson
NUM_PARAMETERS = num_parameters(CONFIG)
RANKS = 4  # that its questions name
BATCH: dict[str, int] = {"sequences": 2, "block": 128}  # of a rank, where the peak is measured
STEPS = 3  # of the run whose timeline is drawn
LR = 1e-3  # of AdamW in `train`

CARD_GB = 80
_BILLIONS = {"1.5B": 1.5, "7.5B": 7.5, "70B": 70.0}  # of parameters
_WAYS = {"bf16 + fp32": "master", "fp32": "float32"}
MODELS, PRECISIONS = tuple(_BILLIONS), tuple(_WAYS)

Memory = Mapping[str, int]  # bytes by category
Counted = Mapping[str, Sequence[float]]  # bytes sent up to the gradients, and in the whole step


def check_ranks(num_ranks: int) -> None:
    """Refuse a single rank: it has nobody to divide with, and sends nothing to be counted.

    Raises:
        ValueError: before any rank starts; fewer than two ranks.
    """
    if num_ranks < 2:
        raise ValueError(f"num_ranks={num_ranks}: ZeRO divides states over ranks, give 2 or more")


def states_of(stage: int, world_size: int = RANKS) -> dict[str, float]:
    """Bytes that a rank keeps between two steps in mixed precision, by formula."""
    return state_bytes(NUM_PARAMETERS, precision="master", world_size=world_size, stage=stage)


def peak_by_formula(stage: int) -> int:
    """Bytes at the highest moment of a float32 step, by formula."""
    recipe = Recipe(stage=stage)
    return sum(predict_peak(CONFIG, recipe, **BATCH, world_size=RANKS).values())


def fits_on_a_card(model: str, ranks: int, precision: str) -> Picture:
    """GB of model states in each rank at each stage, against a card's memory.

    Args:
        model: one of ``MODELS``.
        precision: one of ``PRECISIONS``.

    Raises:
        ValueError: one of these is not, or the ranks are no whole number from 1 on.
    """
    billions, way = known("model", model, _BILLIONS), known("precision", precision, _WAYS)
    rows = {}
    for stage in STAGES:
        sizes = state_bytes(billions, precision=way, world_size=ranks, stage=stage)
        rows[_name(stage)] = dict(sizes)
    needs = [sum(sizes.values()) for sizes in rows.values()]
    fitting = [stage for stage in STAGES if needs[stage] <= CARD_GB]
    words: dict[str, Any] = {"model": model, "ranks": ranks, "card": CARD_GB}
    if not fitting:
        title = t("zero.card.none", least=_gb(needs[3]), **words)
    elif fitting[0] == 0:
        title = t("zero.card.all", free=_gb(CARD_GB - needs[0]), **words)
    else:
        free = _gb(CARD_GB - needs[fitting[0]])
        title = t("zero.card.from", stage=fitting[0], free=free, **words)
    return stacked_bars(
        rows,
        title=title,
        axis=t("zero.card.axis"),
        limit=max(16 * billions, 1.5 * CARD_GB),
        totals=dict(zip(rows, map(_gb, needs), strict=True)),
        mark=(CARD_GB, t("zero.card", card=CARD_GB)),
    )


def kept(run: Run) -> dict[str, int]:
    """What rank 0 keeps after a step: parameters, gradients and optimizer state."""
    end = run.memory.ranks[0]["end"]
    return {name: end[name] for name in CATEGORIES}


def kept_bytes(run: Run) -> int:
    """All of it together."""
    return sum(kept(run).values())


def show_own(apart: Sequence[float]) -> Held:
    """That the lesson's own lines train as one process does."""
    return _held("own", largest(apart), allowed=0.05 * LR)


def show_stages(*runs: Run) -> go.Figure:
    """What a rank keeps at stages 0 to 3: by formula, and counted."""
    world_size, each = len(runs[0].memory.ranks), []
    rows: dict[str, Mapping[str, float]] = {}
    for stage, run in enumerate(runs):
        formula, found = states_of(stage, world_size), kept(run)
        _held("kept", 100 * (sum(found.values()) / sum(formula.values()) - 1), allowed=0.1)
        rows[t("zero.predicted", stage=_name(stage))] = formula
        rows[t("zero.measured", stage=_name(stage))] = found
        each.append(f"{sum(found.values()) / NUM_PARAMETERS:.1f}")
    title = t("zero.glance", ranks=world_size, each=", ".join(each))
    return memory_by_category_figure(rows, title=title)


def model_sizes(sent: Sequence[Counted]) -> dict[int, float]:
    """What a rank sends in a step of stages 1 to 3, in sizes of the model.

    sent: of each rank; where the system does not count bytes, the formula takes their place.
    """
    found = {}
    for stage in (1, 2, 3):
        count = _mean(sent, f"stage{stage}", -1)
        formula = zero_bytes(1, world_size=len(sent), stage=stage)
        found[stage] = formula if count is None else count / 4 / NUM_PARAMETERS
    return found


def show_sent(sent: Sequence[Counted]) -> Together:
    """Bytes of a step by formula and as counted, in sizes of the model."""
    rows, off = [], 0.0
    for stage, times in model_sizes(sent).items():
        formula = zero_bytes(1, world_size=len(sent), stage=stage)
        off = max(off, abs(times / formula - 1))
        rows.append([_name(stage), f"{formula:.3f}", f"{times:.3f}"])
    heads = [t(f"zero.sent.{key}") for key in ("stage", "formula", "measured")]
    return Together(Table(heads, rows), _held("sent", 100 * off, allowed=1, unit="%"))


def own_share(sent: Sequence[Counted]) -> float:
    """Bytes of stage 1's reduce-scatter over those of an all-reduce."""
    ours, theirs = _mean(sent, "stage1", 0), _mean(sent, "all_reduce", 0)
    share = ours / theirs if ours and theirs else 0.5
    assert abs(share - 0.5) < 0.02, f"the reduce-scatter sends {share:.3f} of an all-reduce"
    return share


def gathers(run: Run) -> tuple[int, int]:
    """All-gathers that rank 0 starts in the last step: in forward, and from backward on."""
    lane, counts = run.timeline.ranks[0], [0, 0]
    first, last = lane["steps"][-1]
    spans = [span for span in lane["spans"] if span[2] == "backward" and first <= span[0] < last]
    turn = min(start for start, *_ in spans)
    for call in run.comm.calls:
        if call["rank"] == 0 and call["op"] == "all_gather" and first <= call["start_s"] < last:
            counts[call["start_s"] >= turn] += 1
    return counts[0], counts[1]


def show_gathers(ours: Run, fsdp2: Run) -> Table:
    """All-gathers of a step, in forward and in backward: ours, and FSDP2's."""
    rows = [[name, *gathers(run)] for name, run in (("ZeRO3", ours), ("FSDP2", fsdp2))]
    return Table([t(f"zero.gathers.{key}") for key in ("library", "forward", "backward")], rows)


def figures_of_c3(ours: Run, fsdp2: Run) -> dict[str, Any]:
    """What this lesson measured for claim C3, by the names of its figures."""
    forward, backward = gathers(ours)
    return {"forward": forward, "backward": backward, "fsdp2": gathers(fsdp2)[1]}


def peak_ratio(peaks: Sequence[Memory]) -> float:
    """How many times less stage 3 needs at its peak than data parallelism."""
    return sum(peaks[0].values()) / sum(peaks[3].values())


def show_peaks(peaks: Sequence[Memory]) -> go.Figure:
    """The highest moment of a rank at stages 0 to 3, with a usual batch."""
    most = peaks[3]["activations"] / sum(peaks[3].values())
    assert peak_ratio(peaks) < 2 and most > 0.5, f"{peak_ratio(peaks):.2f} times less, {most:.0%}"
    assert peaks[1]["gradients"] > 2 * peaks[0]["gradients"], "stage 1 keeps a buffer of gradients"
    rows = {_name(stage): peak for stage, peak in enumerate(peaks)}
    return memory_by_category_figure(rows, title=t("zero.peak", ratio=peak_ratio(peaks)))


def show_small(peaks: Sequence[Memory]) -> go.Figure:
    """The same of a small model as one unit and few tokens: stages 1 to 3."""
    needs = [sum(peak.values()) for peak in peaks]
    # With two ranks stages 1 and 2 need the same, but for a few buffers
    assert needs[0] < 1.01 * needs[1] < needs[2], f"bytes at the peak: {needs}"
    weights = 4 * NUM_PARAMETERS
    assert all(peak["activations"] < weights / 10 for peak in peaks), "gradients in flight are none"
    rows = {_name(stage): peak for stage, peak in enumerate(peaks, start=1)}
    return memory_by_category_figure(rows, title=t("zero.small", ratio=needs[2] / needs[0]))


def times_less(*runs: Run) -> list[float]:
    """How many times less a rank keeps at each stage than in data parallelism."""
    return [kept_bytes(runs[0]) / kept_bytes(run) for run in runs]


def show_libraries(
    found: Mapping[str, Sequence[Mapping[str, Any]]],
    absent: Sequence[str],
    apart: Sequence[Mapping[str, float]],
) -> Together:
    """One step of the same model in this lesson's stages and in real libraries.

    Args:
        found: by name, what the ranks have measured.
        absent: libraries that are not installed here.
        apart: of each rank, how far each stage's parameters are from one process's.
    """
    losses = {f"{sum(rank['loss'] for rank in ranks):.3f}" for ranks in found.values()}
    assert len(losses) == 1, f"the losses differ: {losses}"
    worst = largest(largest(of.values()) for of in apart)
    return Together(
        library_comparison_table(found, reference="FSDP2", absent=absent),
        _held("stages", worst, allowed=0.05 * LR),
    )


def show_published() -> Together:
    """FSDP on H100, as llm-foundry has published it: two models over more and more GPUs."""
    path = course_folder() / "data/published_runs.json"
    table = json.loads(path.read_text(encoding="utf-8"))["llm_foundry"]
    runs = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    chosen = [run for run in runs if run["sequence"] == 2048 and run["model"] in ("13b", "70b")]
    small, large = ([run for run in chosen if run["model"] == name] for name in ("13b", "70b"))
    rates = [run["mfu"] for run in small]
    assert max(rates) - min(rates) < 0.5 and large[1]["mfu"] > large[0]["mfu"], chosen
    again = {True: t("zero.published.yes"), False: t("zero.published.no")}
    rows = []
    for run in chosen:
        row = [run["model"].upper(), run["gpus"], run["micro_batch"], again[run["recompute"]]]
        rows.append([*row, f"{run['mfu']:.1f}%", run["tokens_per_second"]])
    keys = ("model", "gpus", "micro_batch", "recompute", "mfu", "tokens")
    said = Said(t("zero.published.said", few=small[0]["gpus"], many=small[-1]["gpus"]))
    return Together(Table([t(f"zero.published.{key}") for key in keys], rows), said)


def show_timeline(run: Run) -> go.Figure:
    """The last step of stage 3: where it computes, and where messages are under way."""
    hidden = f"{run.timeline.hidden_fraction:.0%}"
    figure = timeline_figure(run.timeline.data(), steps=STEPS - 1)
    return figure.update_layout(title_text=t("zero.timeline", hidden=hidden))


def show_resumed(by_all: Sequence[float], by_half: Sequence[float]) -> Held:
    """That half of the ranks go on where all of them had saved."""
    worst = largest(abs(a - b) for a, b in zip(by_all, by_half, strict=True))
    return _held("resumed", worst, allowed=1e-4)


def show_mesh(apart: Sequence[float], held_by: Sequence[int]) -> Together:
    """That tensor parallelism inside ZeRO is one process's training, and what a rank holds."""
    share = held_by[0] / NUM_PARAMETERS
    assert abs(share * len(held_by) - 1) < 0.05, f"rank 0 holds {share:.1%}"
    said = Said(t("zero.mesh", share=f"{share:.0%}"))
    return Together(said, _held("mesh", largest(apart), allowed=1e-4))


def show_one_of_many(found: Any) -> Together:
    """One of 1,024 ranks, and that it keeps what the formula says."""
    share = 16 * found.record["parameters"] / 1024
    off = 100 * (sum(found.kept.values()) / share - 1)
    return Together(found, _held("scale", off, allowed=2, unit="%"))


def _name(stage: int) -> str:
    return t("zero.stage", stage=stage) if stage else t("zero.copies")


def _gb(size: float) -> str:
    return f"{size:.1f} GB" if size >= 1 else f"{size:.2f} GB"


def _mean(sent: Sequence[Counted], name: str, place: int) -> float | None:
    """Over the ranks; None where the system does not count."""
    found = [of[name][place] for of in sent if of[name]]
    return sum(found) / len(found) if found else None


def _held(name: str, difference: float, *, allowed: float, unit: str = "", **words: Any) -> Held:
    what = t(f"zero.held.{name}", **words)
    because = t(f"zero.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
