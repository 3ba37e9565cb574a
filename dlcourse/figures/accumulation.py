"""The figures and tables of lesson 09, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import bars_figure
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.picture import Picture, stacked_bars
from dlcourse.figures.tables import Table
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig
from dlcourse.words.strings import t
from dlcourse.words.units import apart_text, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

BATCH = 64  # sequences of a step, in the whole lesson
MICRO_BATCHES = 4  # of each rank
BLOCK = 32  # tokens of a sequence
OURS = GPTConfig()  # the model of the lesson
ADAM = 0.05  # of the learning rate, by which Adam may enlarge rounding
_STATES = ("parameters", "gradients", "optimizer_state", "activations")

Trials = Mapping[str, tuple[float, float, float]]  # equal bits, largest difference, learning rate


def check_ranks(num_ranks: int) -> None:
    """Refuse a number of ranks that cannot share the lesson's batch equally.

    Raises:
        ValueError: before any rank starts; says which numbers do.
    """
    fit = BATCH // MICRO_BATCHES
    if num_ranks < 1 or fit % num_ranks:
        raise ValueError(
            f"num_ranks={num_ranks}: every rank takes {MICRO_BATCHES} equal micro-batches of the "
            f"lesson's {BATCH} sequences, so give a divisor of {fit}"
        )


def peak_of_one_process(accumulate: int) -> dict[str, int]:
    """Bytes by category at the peak of a step of the lesson's model, by formula."""
    return predict_peak(OURS, Recipe(accumulate=accumulate), sequences=BATCH, block=BLOCK)


def memory_of_a_step(micro_batches: int) -> Picture:
    """What accumulation leaves of the peak, for the lesson's model and for GPT-2 large.

    Bars in percent of the peak without accumulation, by formula: AdamW, float32.
    """
    models = {
        t("accumulation.explore.ours"): (OURS, BLOCK),
        t("accumulation.explore.large"): (GPT2_LARGE, GPT2_LARGE.block_size),
    }
    rows, totals, floors = {}, {}, []
    for label, (sizes, block) in models.items():
        whole, parts = (
            predict_peak(sizes, Recipe(accumulate=count), sequences=BATCH, block=block)
            for count in (1, micro_batches)
        )
        percent = 100 / sum(whole.values())
        rows[label] = {name: size * percent for name, size in parts.items()}
        totals[label] = human_bytes(sum(parts.values()))
        floors.append(human_bytes(sum(parts.values()) - parts["activations"]))
    key = "accumulation.explore.whole" if micro_batches == 1 else "accumulation.explore.title"
    ours, large = floors
    title = t(key, parts=_label(micro_batches), ours=ours, large=large)
    axis = t("accumulation.explore.axis")
    return stacked_bars(rows, title=title, axis=axis, limit=100, totals=totals)


def show_peaks(whole: Run, small: Run, parts: Run) -> Together:
    """One batch of 64, one of 16, four of 16: what was there at the peak of memory."""
    before, of_16, after = (run.memory.ranks[0] for run in (whole, small, parts))
    rows = [
        [
            t(f"category.{name}"),
            *(human_bytes(run["at_peak"][name]) for run in (before, of_16, after)),
        ]
        for name in _STATES
    ]
    peaks = (human_bytes(run["peak_bytes"]) for run in (before, of_16, after))
    rows.append([t("accumulation.all"), *peaks])
    share = 400 * after["at_peak"]["activations"] / before["at_peak"]["activations"]
    extra = 100 * (after["peak_bytes"] - of_16["peak_bytes"]) / before["at_peak"]["parameters"]
    return Together(
        Table([t("accumulation.at_peak"), "1 × 64", "1 × 16", "4 × 16"], rows),
        _held("quarter", share - 100, allowed=5, unit="%"),
        _held("copy", extra - 100, allowed=5, unit="%"),
    )


def show_floor(peaks: Mapping[int, Mapping[str, int]]) -> go.Figure:
    """Bytes at the peak by category, for each number of micro-batches."""
    first, last = peaks[min(peaks)], peaks[max(peaks)]
    for count, peak in peaks.items():
        _held("shrink", 100 * (count * peak["activations"] / first["activations"] - 1), allowed=5)
        _held("same_parameters", peak["parameters"] - first["parameters"], allowed=0)
    least = human_bytes(sum(last[name] for name in _STATES if name != "activations"))
    rows = {_label(count): peak for count, peak in peaks.items()}
    return memory_by_category_figure(rows, title=t("accumulation.memory.title", least=least))


def show_times(seconds: Mapping[int, float], whole: Run, parts: Run) -> go.Figure:
    """Time of a step for each number of micro-batches, as a multiple of the undivided one."""
    work = [run.throughput.flops for run in (whole, parts)]
    _held("work", work[1] / work[0] - 1, allowed=0)
    ratios = {count: taken / seconds[1] for count, taken in seconds.items()}
    most = max(ratios)
    title = t("accumulation.time.title", four=ratios[4], most=ratios[most], last=_label(most))
    labels, axis = [_label(count) for count in ratios], t("accumulation.time.axis")
    return bars_figure(labels, list(ratios.values()), axis=axis, title=title, unit="×", reference=1)


def show_same(trials: Trials, steps: int) -> Together:
    """How far apart four micro-batches and one batch are after some steps, bit by bit."""
    rows = [
        [name, f"{bits:.0%}", apart_text(apart), f"{100 * apart / lr:.2g}%"]
        for name, (bits, apart, lr) in trials.items()
    ]
    heads = [t(f"accumulation.same{key}", steps=steps) for key in (".what", ".bits", "", ".lr")]
    lines = [_held("same_sgd", trials["SGD, float32"][1], allowed=1e-5)]
    _, apart, lr = trials["AdamW, float32"]
    lines.append(_held("same_adam", apart, allowed=ADAM * lr))
    if "AdamW, float64" in trials:  # not on Apple's GPUs
        lines.append(_held("same_wide", trials["AdamW, float64"][1], allowed=1e-10))
    return Together(Table(heads, rows), *lines)


def show_layers(errors: Mapping[str, float]) -> Together:
    """Error of the gradient of four micro-batches, by what is in the model."""
    rows = [[t(f"accumulation.layer.{name}"), f"{error:.1g}"] for name, error in errors.items()]
    for name in ("batch_norm", "dropout"):  # these are far off, layer norm is not
        assert errors[name] > 0.01, f"{name} is off by {errors[name]:.1g} only"
    line = _held("layer_norm", errors["layer_norm"], allowed=1e-5)
    return Together(Table([t("accumulation.layer"), t("accumulation.off")], rows), line)


def show_uneven(uneven: float, by_tokens: float) -> Together:
    """Error of the gradient with unequal numbers of targets, by both ways to divide."""
    assert uneven > 0.1, f"the mean of means is off by {uneven:.1g} only"
    said = Said(t("accumulation.uneven", plain=f"{uneven:.0%}"))
    return Together(said, _held("by_tokens", by_tokens, allowed=1e-5))


def show_no_sync(cases: Mapping[str, tuple[float, float]], *, ranks: int) -> Table:
    """What each way to use `no_sync()` sends, and how far the ranks are apart afterwards."""
    times = [sent for sent, _ in cases.values()]
    assert times == [4, 4, 1, 0], f"times the gradients: {times}, expected 4, 4, 1, 0"
    drifts = [drift > 0 for _, drift in cases.values()]
    assert drifts == [False, False, False, ranks > 1], f"ranks that drift: {drifts}"
    rows = [
        [t(f"accumulation.no_sync.{name}"), f"{sent:.3g} ×", f"{drift:.2g}"]
        for name, (sent, drift) in cases.items()
    ]
    return Table([t(f"accumulation.no_sync{key}") for key in ("", ".sent", ".drift")], rows)


def show_libraries(runs: Mapping[str, tuple[Run, float]], *, steps: int, lr: float) -> Together:
    """Our class and torch's: bytes sent in a step, activations, and how far from one process."""
    rows = [[t(f"accumulation.peer.{key}")] for key in ("sent", "activations", "apart")]
    for run, apart in runs.values():
        sent = run.comm.ranks[0]["ops"]["all_reduce"]["bytes"] / steps
        activations = run.memory.ranks[0]["at_peak"]["activations"]
        cells = [human_bytes(sent), human_bytes(activations), f"{apart / lr:.1%}"]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    apart = largest(apart for _, apart in runs.values())
    return Together(
        Table([t("accumulation.peer"), *runs], rows), _held("one_process", apart, allowed=ADAM * lr)
    )


def show_large(*, gradients: float, without: float, within: float) -> Table:
    """Of a model on many GPUs, in GB: its gradients, and what each GPU sends in a step."""
    numbers = {"gradients": gradients, "without": without, "within": within}
    rows = [[t(f"accumulation.large.{name}"), f"{gb:.3g} GB"] for name, gb in numbers.items()]
    return Table([t("accumulation.large"), ""], rows)


def show_all_reduces(run: Run) -> Table:
    """What rank 0 gave to each all-reduce of a run, in order."""
    calls = [call for call in run.comm.calls if call["op"] == "all_reduce" and call["rank"] == 0]
    rows = [[number, human_bytes(call["bytes"])] for number, call in enumerate(calls, start=1)]
    return Table([t("accumulation.calls.number"), t("accumulation.calls.bytes")], rows)


def figures_of_d1(
    whole: Run,
    small: Run,
    parts: Run,
    *,
    trials: Trials,
    layer_errors: Mapping[str, float],
    uneven: float,
    cases: Mapping[str, Sequence[float]],
    seconds: Mapping[int, float],
) -> dict[str, Any]:
    """What this lesson measured for claim D1, by the names of its figures."""
    before, of_16, after = (run.memory.ranks[0] for run in (whole, small, parts))
    bits, apart, lr = trials["AdamW, float32"]
    return {
        "bits": 100 * bits,
        "apart": 100 * apart / lr,
        "batch_norm": 100 * layer_errors["batch_norm"],
        "uneven": 100 * uneven,
        "activations": after["at_peak"]["activations"] / before["at_peak"]["activations"],
        "extra": (after["peak_bytes"] - of_16["peak_bytes"]) / before["at_peak"]["parameters"],
        "sent": cases["none"][0] / cases["both"][0],
        "time": seconds[4] / seconds[1],
    }


def _label(count: int) -> str:
    return f"{count} × {BATCH // count}"


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    what = t(f"accumulation.held.{name}")
    because = t(f"accumulation.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
