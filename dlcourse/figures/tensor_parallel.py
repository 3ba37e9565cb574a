"""The figures and tables of lesson 04, each one call; what they rest on is checked, and said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.corpus import course_folder
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.library_comparison import library_comparison_table
from dlcourse.figures.matrix_cut import HIDDEN, TOKENS, WIDTH
from dlcourse.figures.run import timeline_figure
from dlcourse.figures.tables import Table
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.formulas.traffic import block_bytes, pair_crossings, wire_bytes
from dlcourse.parallel.divisibility import check_tensor_parallel
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

CONFIG = GPTConfig()  # the model of the lesson
RANKS = 4  # that its questions name
STEPS = 5
LR = 1e-3  # of AdamW in `train`
LARGE = {"tokens": 64, "outputs": 4096}  # the example of claim B2
RING = 64  # positions of the sequence that goes round
# H100s: bytes a second each way over both links, FLOP/s that are assumed; tokens of a step
NVLINK, CARD, SPEED, LONG = 450e9, 50e9, 400e12, 2048


def check_ranks(num_ranks: int) -> None:
    """Refuse a number of ranks that cannot share the lesson's heads, and one that sends nothing.

    Raises:
        ValueError: before any rank starts; says which numbers do.
    """
    check_tensor_parallel(n_head=CONFIG.n_head, n_embd=CONFIG.n_embd, size=num_ranks)
    if num_ranks < 2:
        raise ValueError(f"num_ranks={num_ranks}: one rank has nothing to send, give 2 or 4")


def gathered_bytes() -> float:
    """What a rank sends so that all have the whole output of the large layer."""
    return wire_bytes("all_gather", 4 * LARGE["tokens"] * LARGE["outputs"], RANKS)


def gathers_over_reduce() -> float:
    """Forward: an all-gather after each matrix, over columns, then rows and one all-reduce."""

    def forward(first: str, second: str) -> float:
        crossings = pair_crossings(first, second, tokens=TOKENS, width=WIDTH, hidden=HIDDEN)
        return sum(wire_bytes(*crossings[name], RANKS) for name in ("middle", "end"))

    return forward("columns", "columns") / forward("columns", "rows")


def backward_bytes() -> float:
    """One all-reduce of the gradient of x."""
    return wire_bytes("all_reduce", 4 * TOKENS * WIDTH, RANKS)


def all_reduces() -> int:
    """Attention and MLP, each left in forward and entered in backward."""
    return CONFIG.n_layer * 2 * 2


def ring_bytes() -> float:
    """Keys and values of a rank's positions, passed on p - 1 times."""
    return (RANKS - 1) * 2 * 4 * (RING // RANKS) * CONFIG.n_embd


def most_sent(counted: Sequence[int | None], run: Run) -> float:
    """Bytes of the rank that sent most: over TCP, or where those are not counted, by theory."""
    found = [count for count in counted if count is not None]
    return max(found) if found else run.comm.ranks[0]["wire_bytes"]


def show_parts(columns: Sequence[int], apart: Sequence[float]) -> Together:
    """That each rank holds its share of the columns, and that the parts make the whole."""
    expected = LARGE["outputs"] // len(columns)
    off = largest(abs(count - expected) for count in columns)
    return Together(
        _held("columns", off, allowed=0, columns=f"{expected:,}"),
        _held("whole", largest(apart), allowed=1e-5),
    )


def ways_ratio(gathers: Run, reduces: Run) -> float:
    """Bytes of two all-gathers over those of one all-reduce, as recorded."""
    ratio: float = gathers.comm.ranks[0]["wire_bytes"] / reduces.comm.ranks[0]["wire_bytes"]
    return ratio


def show_ways(gathers: Run, reduces: Run, apart: Sequence[float]) -> Together:
    """Collectives and bytes of both ways to join two layers, in forward."""
    rows = [
        [t(f"tensor_parallel.way.{name}"), str(way["calls"]), human_bytes(way["wire_bytes"])]
        for name, way in (
            ("columns", gathers.comm.ranks[0]),
            ("rows", reduces.comm.ranks[0]),
        )
    ]
    heads = [t(f"tensor_parallel.{key}") for key in ("way", "collectives", "sent")]
    return Together(Table(heads, rows), _held("mlp", largest(apart), allowed=1e-5))


def show_gelu(wrong: Sequence[float], right: Sequence[float]) -> Said:
    """How far off the output is if the summands enter GELU without being added up."""
    off, fine = largest(wrong), largest(right)
    assert fine < 1e-5 < 0.1 < off, f"off by {off}, and {fine} the right way"
    return Said(t("tensor_parallel.gelu", wrong=f"{off:.0%}", right=f"{fine:.0e}"))


def show_gradients(apart: Sequence[float]) -> Held:
    """That x and both matrices have the gradients of one process."""
    return _held("gradients", largest(apart), allowed=1e-5)


def calls_a_step(run: Run) -> float:
    """All-reduces of a step; each carries the whole residual stream."""
    found = run.comm.ranks[0]["ops"]["all_reduce"]
    stream = 4 * 2 * CONFIG.block_size * CONFIG.n_embd
    assert found["bytes"] == found["calls"] * stream, f"{found} is not of {stream} bytes each"
    calls: float = found["calls"] / STEPS
    return calls


def show_timeline(run: Run) -> go.Figure:
    """The last step of a run: where it computes, and where it waits for a sum."""
    hidden = f"{run.timeline.hidden_fraction:.0%}"
    figure = timeline_figure(run.timeline.data(), steps=STEPS - 1)
    return figure.update_layout(title_text=t("tensor_parallel.timeline", hidden=hidden))


def show_apart(found: Sequence[Mapping[str, Sequence[float]]]) -> Table:
    """First loss and parameters of four trainings beside one process."""
    rows, trials = [], {}
    for name in ("float32", "float64", "reordered", "forgotten"):
        first, worst = (max(pair) for pair in zip(*(of[name] for of in found), strict=True))
        trials[name] = worst
        size = f"{worst:.1g} ({worst / LR:.2g} lr)"
        rows.append([t(f"tensor_parallel.apart.{name}"), f"{first:.1g}", size])
        assert first < 5e-6, f"{name}: the first loss is off by {first}"
    assert trials["float32"] < 0.3 * LR and trials["float64"] < 1e-9, trials
    assert trials["reordered"] < 0.3 * LR < LR < trials["forgotten"], trials
    return Table([t(f"tensor_parallel.apart.{key}") for key in ("what", "loss", "most")], rows)


def show_libraries(
    found: Mapping[str, Sequence[Mapping[str, Any]]], installed: Sequence[bool]
) -> Together:
    """This lesson's code, DTensor and megatron-core: one step of the same model.

    Args:
        found: by kind, what the ranks have measured.
        installed: whether megatron-core is here.
    """
    assert [found[name][0]["calls"] for name in ("ours", "dtensor", "dtensor_plain")] == [
        16,
        16,
        24,
    ]
    losses = {f"{ranks[0]['loss']:.4f}" for ranks in found.values()}
    assert len(losses) == 1, f"the losses differ: {losses}"
    told = _read("notebooks/source/04_tensor_parallel/megatron_core.json")
    library = f"{told['library']} {told['version']}"
    name = t("tensor_parallel.recorded", name=library, date=told["date"])
    named = {t(f"tensor_parallel.library.{kind}"): ranks for kind, ranks in found.items()}
    here = "installed" if installed[0] else "not_installed"
    return Together(
        library_comparison_table(named, reference="DTensor", recorded={name: told["ranks"]}),
        Said(t(f"tensor_parallel.library.{here}")),
    )


def show_cluster() -> Together:
    """Times by formula, and what has been published."""
    return Together(_times(), _published())


def _published() -> Table:
    """Megatron-LM's published rows that have tensor and data parallelism, and no pipeline."""
    found = _read("data/published_runs.json")["sc21"]
    runs = [dict(zip(found["columns"], row, strict=True)) for row in found["rows"]]
    keys = ("model", "tensor", "gpus", "tflops", "percent")
    rows = [[str(run[key]) for key in keys] for run in runs if run["pipeline"] == 1]
    assert max(run["tensor"] for run in runs) == 8, "no row has more than a node's 8"
    return Table([t(f"tensor_parallel.published.{key}") for key in keys], rows)


def _times() -> Table:
    """By formula: all-reduces of a 7B model's step among 8 ranks, over two links; and computing."""
    model = MODELS["7b"]
    sizes = {"layers": model.n_layer, "width": model.n_embd, "tokens": LONG}
    sent = block_bytes(**sizes, world_size=8, itemsize=2)
    times = {"nvlink": sent / NVLINK, "card": sent / CARD, "compute": 6 * 7e9 * LONG / 8 / SPEED}
    rows = [
        [t(f"tensor_parallel.times.{name}"), f"{1e3 * seconds:.0f} ms"]
        for name, seconds in times.items()
    ]
    heads = [t("tensor_parallel.times"), t("tensor_parallel.times.step")]
    return Table(heads, rows)


def show_one_of_many(found: Any) -> Together:
    """One of 1,024 ranks, and that its blocks send what the formula says."""
    model = MODELS["7b"]
    sent = sum(row["sent_bytes"] for row in found.comm if row["group_size"] == 8)
    formula = block_bytes(
        layers=model.n_layer, width=model.n_embd, tokens=model.block_size, world_size=8
    )
    return Together(found, _held("scale", 100 * (sent / formula - 1), allowed=5, unit="%"))


def show_vocabulary(exact: float, naive: float, padded: float) -> Said:
    """The loss with the remainder of the vocabulary dropped, and with padding."""
    off = abs(naive / exact - 1)
    assert abs(padded - exact) < 1e-5 and off > 0.1, (exact, naive, padded)
    numbers = {"right": f"{exact:.4f}", "naive": f"{naive:.4f}", "padded": f"{padded:.4f}"}
    return Said(t("tensor_parallel.vocabulary", off=f"{off:.0%}", **numbers))


def show_peaks(alone: Run, tensor: Run, sequence: Run) -> Table:
    """Memory at the peak and bytes of a step: one process, tensor, with sequence parallelism."""
    rows, kept = [], []
    for name, run in (("alone", alone), ("tensor", tensor), ("sequence", sequence)):
        one = run.memory.ranks[0]
        sizes = [one["peak_bytes"], one["at_peak"]["parameters"], one["at_peak"]["activations"]]
        kept.append(sizes[-1])
        sizes.append(run.comm.ranks[0]["wire_bytes"] / 2)
        rows.append([t(f"tensor_parallel.peak.{name}"), *map(human_bytes, sizes)])
    assert kept[0] > kept[1] > kept[2], f"activations: {kept}"
    keys = ("kind", "all", "parameters", "activations", "sent")
    return Table([t(f"tensor_parallel.peak.{key}") for key in keys], rows)


def sequence_over_tensor(tensor: Run, sequence: Run) -> float:
    """Bytes of a step with sequence parallelism over those without."""
    return ways_ratio(sequence, tensor)


def show_work(work: Sequence[Sequence[int]]) -> Table:
    """Blocks of attention that each rank computes, with the plain and the zig-zag split."""
    plain, balanced = work
    assert len(set(balanced)) == 1 < len(set(plain)), f"{plain} and {balanced} blocks"
    rows = [
        [t("figure.rank", rank=rank), *blocks]
        for rank, blocks in enumerate(zip(plain, balanced, strict=True))
    ]
    heads = [t(f"tensor_parallel.context.{key}") for key in ("rank", "plain", "balanced")]
    caption = t("tensor_parallel.context.title", ratio=f"{plain[-1] / plain[0]:g}")
    return Table(heads, rows, caption=caption)


def show_ring(apart: Sequence[float]) -> Held:
    """That ring attention is full attention, output and gradients."""
    return _held("ring", largest(apart), allowed=1e-5)


def figures_of_b2(
    columns: Sequence[int], apart: Sequence[float], sent: float, ways: float
) -> dict[str, Any]:
    """What this lesson measured for claim B2, by the names of its figures."""
    return {"columns": columns[0], "apart": max(apart), "sent": sent, "ways": ways}


def _read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((course_folder() / path).read_text(encoding="utf-8"))
    return found


def _held(name: str, difference: float, *, allowed: float, unit: str = "", **words: Any) -> Held:
    what = t(f"tensor_parallel.held.{name}", **words)
    because = t(f"tensor_parallel.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
