"""The figures and tables of lesson 03, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.held import Held, Together, held, largest
from dlcourse.figures.picture import Bar, Picture, lanes
from dlcourse.figures.tables import Table
from dlcourse.formulas.overlap import Job, buckets, hidden_share, overlapped_seconds
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import digits, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

LR = 1e-3  # of the lesson's training
SIZES = (1, 2, 4, 8)  # layers in a bucket that are timed
_LIMIT = 800  # ms: where the slider's axis ends

Parts = tuple[float, float, float]  # seconds from the start to the end of forward, backward, step


def overlap_of_buckets(layers_in_a_bucket: int, latency_ms: float) -> Picture:
    """One rank's step with imposed times, by formula: what it computes, and when buckets travel."""
    job = Job(latency=latency_ms / 1000)
    begin, end = 1000 * job.layers * job.forward, 1000 * job.alone()
    spans = [(begin + 1000 * a, begin + 1000 * b) for a, b in buckets(job, layers_in_a_bucket, 4)]
    one = 1000 * job.backward
    computing = [
        Bar(
            start=begin + i * one,
            end=begin + (i + 1) * one,
            category="gradients",
            words=str(job.layers - 1 - i),
        )
        for i in range(job.layers)
    ]
    forward = Bar(start=0, end=begin, category="activations", words=t("data_parallel.forward"))
    sending = [
        Bar(start=a, end=b, category="communication", words=str(i))
        for i, (a, b) in enumerate(spans)
    ]
    title = t(
        "data_parallel.explore.title",
        step=round(1000 * overlapped_seconds(job, layers_in_a_bucket, 4)),
        hidden=f"{hidden_share(job, layers_in_a_bucket, 4):.0%}",
        exposed=round(spans[-1][1] - end),
    )
    rows = {t("data_parallel.computes"): [forward, *computing], t("data_parallel.sends"): sending}
    return lanes(rows, title=title, axis=t("data_parallel.axis.ms"), limit=_LIMIT)


def show_equal(apart: Sequence[float], drift: Sequence[float]) -> Together:
    """That ranks are equal to each other, and to one process up to rounding."""
    return Together(
        _held("drift", largest(drift), allowed=0),
        _held("apart", largest(apart), allowed=0.5 * LR, lr=f"{LR:.0e}"),
    )


def show_steps(runs: Mapping[str, Run]) -> Together:
    """The last step of rank 0 in each run on one axis, and how many messages left early."""
    rows: dict[str, list[Bar]] = {}
    last = 0.0
    for name, run in runs.items():
        lane = run.timeline.ranks[0]
        begin, end = lane["steps"][-1]
        last = max(last, 1000 * (end - begin))
        own: list[Bar] = []
        other: list[Bar] = []
        for start, stop, kind, _ in lane["spans"]:
            if kind not in _KINDS or not begin <= start < end:
                continue
            bar = Bar(
                start=1000 * (start - begin),
                end=1000 * (min(stop, end) - begin),
                category=_KINDS[kind],
                words=t(f"figure.span.{kind}") if kind != "communication" else "",
            )
            (other if kind == "communication" else own).append(bar)
        rows[name] = own
        rows[t("data_parallel.messages_of", name=name)] = other
    hidden = ", ".join(f"{n} {r.timeline.hidden_fraction:.0%}" for n, r in runs.items())
    title = t("data_parallel.steps", hidden=hidden)
    picture = lanes(rows, title=title, axis=t("data_parallel.axis.ms"), limit=_round_up(last))
    told = [[name, *_messages(run)] for name, run in runs.items()]
    assert told[0][2] == 0 and all(row[2] for row in told[1:]), f"sent early: {told}"
    heads = [t(f"data_parallel.{key}") for key in ("class", "messages", "early")]
    return Together(picture, Table(heads, told))


def show_imposed(parts: Mapping[str, Parts]) -> Together:
    """Forward, backward, and what is left to wait for, of each class, with imposed times."""
    rows, steps = {}, {name: 1000 * each[2] for name, each in parts.items()}
    for name, (forward, backward, step) in parts.items():
        waits = t("data_parallel.waits", ms=round(1000 * (step - backward)))
        rows[name] = [
            Bar(
                start=0,
                end=1000 * forward,
                category="activations",
                words=t("data_parallel.forward"),
            ),
            Bar(
                start=1000 * forward,
                end=1000 * backward,
                category="gradients",
                words=t("data_parallel.backward"),
            ),
            Bar(start=1000 * backward, end=1000 * step, category="communication", words=waits),
        ]
    slowest, fastest = max(steps.values()), min(steps, key=lambda name: steps[name])
    title = t("data_parallel.imposed", name=fastest, ratio=slowest / steps[fastest])
    axis = t("data_parallel.axis.ms")
    told = [[name, f"{ms:.0f} ms", f"{slowest / ms:.2f}"] for name, ms in steps.items()]
    heads = [t(f"data_parallel.{key}") for key in ("class", "step", "ratio")]
    limit = _round_up(slowest)
    return Together(lanes(rows, title=title, axis=axis, limit=limit), Table(heads, told))


def show_buckets(seconds: Mapping[int, float], world_size: int) -> go.Figure:
    """Step time over the layers in a bucket, with imposed times, beside the formula."""
    best = min(seconds, key=lambda size: seconds[size])
    formula = [1000 * overlapped_seconds(Job(), size, world_size) for size in seconds]
    return sweep_figure(
        [*seconds],
        {
            t("data_parallel.predicted"): formula,
            t("data_parallel.measured"): [1000 * each for each in seconds.values()],
        },
        x_title=t("data_parallel.axis.bucket"),
        y_title=t("data_parallel.axis.step"),
        title=t(
            "data_parallel.best",
            best=best,
            one=seconds[1] / seconds[best],
            all=seconds[Job().layers] / seconds[best],
        ),
    )


def show_scaling(
    alone: float, alone_with_more: float, strong: float, weak: float, world_size: int
) -> Table:
    """One rank against all of them: the same batch divided, and a batch as large for each."""
    rows = []
    for key, one, many in (("strong", alone, strong), ("weak", alone_with_more, weak)):
        ratio = one / many
        cells = [f"{1000 * one:.0f} ms", f"{1000 * many:.0f} ms", f"{ratio:.2f}"]
        rows.append([t(f"data_parallel.{key}"), *cells, f"{ratio / world_size:.0%}"])
    heads = [
        t("data_parallel.batch"),
        t("data_parallel.one"),
        t("data_parallel.many", ranks=world_size),
        t("data_parallel.ratio"),
        t("data_parallel.efficiency"),
    ]
    return Table(heads, rows)


def show_no_sync(sent: Mapping[str, float], drift: Mapping[str, float]) -> Table:
    """What DDP sent, and how far ranks were apart, with more or less inside no_sync()."""
    assert [*sent.values()] == [1, 2, 0], f"sent: {sent}"
    rows = [[t(f"data_parallel.no_sync.{n}"), f"{sent[n]:g} ×", digits(drift[n])] for n in _NO_SYNC]
    return Table([t(f"data_parallel.no_sync{key}") for key in ("", ".sent", ".drift")], rows)


def show_uneven(plain: Sequence[float], weighted: Sequence[float]) -> Together:
    """The error of a mean of means, and that weighting by tokens mends it."""
    error = Table(
        [t("data_parallel.uneven"), ""], [[t("data_parallel.plain"), f"{max(plain):.1%}"]]
    )
    return Together(error, _held("weighted", largest(weighted), allowed=1e-5))


def show_peers(
    runs: Mapping[str, Run], losses: Sequence[Sequence[float]], seconds: Sequence[float]
) -> Together:
    """Ours and torch's DDP: loss, step time, bytes and memory."""
    ours, theirs = losses
    apart = largest(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    pairs = zip(runs.values(), losses, seconds, strict=True)
    columns = [_peer(run, each, took / seconds[-1]) for run, each, took in pairs]
    rows = list(zip([t(f"data_parallel.peer.{key}") for key in _PEER], *columns, strict=True))
    table = Table([t("data_parallel.peer.quantity"), *runs], rows)
    return Together(table, _held("losses", apart, allowed=1e-4))


def show_cluster() -> Table:
    """Seconds for the gradients of 7 billion bf16 parameters, by what carries them."""
    size, link, card = 14e9, 450e9, 50e9
    node = wire_bytes("all_reduce", size, 8) / link
    one = wire_bytes("all_reduce", size, 64) / card
    rings = max(one / 8, wire_bytes("all_reduce", size, 64) / link)
    times = (("node", node), ("one_ring", one), ("eight_rings", rings))
    rows = [[t(f"data_parallel.cluster.{key}"), f"{seconds:.3f} s"] for key, seconds in times]
    return Table([t("data_parallel.cluster"), t("data_parallel.cluster.time")], rows)


_KINDS = {
    "forward": "activations",
    "backward": "gradients",
    "optimizer": "optimizer_state",
    "communication": "communication",
}
_NO_SYNC = ("both", "backward_only", "last_forward")
_PEER = ("loss", "time", "bytes", "peak", "parameters", "buckets", "optimizer_state", "activations")


def _round_up(milliseconds: float) -> float:
    """A little more than this, so that a quarter of it is a round number."""
    unit = 20 if milliseconds < 200 else 100
    return unit * (int(milliseconds / unit) + 1)


def _messages(run: Run) -> tuple[int, int]:
    """All-reduces of the last step of rank 0, and those that began before backward ended."""
    lane = run.timeline.ranks[0]
    start, end = lane["steps"][-1]
    spans = lane["spans"]
    backward = max(b for a, b, kind, _ in spans if kind == "backward" and start <= a < end)
    calls = [c["start_s"] for c in run.comm.calls if (c["rank"], c["op"]) == (0, "all_reduce")]
    inside = [call for call in calls if start <= call < end]
    return len(inside), sum(call < backward for call in inside)


def _peer(run: Run, losses: Sequence[float], ratio: float) -> list[str]:
    peak = run.memory.ranks[0]["at_peak"]
    own = peak["gradients"] + peak["communication"] + peak["other"]
    kept = [peak["parameters"], own, peak["optimizer_state"], peak["activations"]]
    sent = run.comm.ranks[0]["ops"]["all_reduce"]["bytes"] / len(losses)
    sizes = [human_bytes(size) for size in (sent, sum(peak.values()), *kept)]
    return [f"{losses[-1]:.5f}", f"{ratio:.2f}", *sizes]


def _held(name: str, difference: float, *, allowed: float, **words: Any) -> Held:
    because = t(f"data_parallel.held.{name}.because", **words)
    return held(t(f"data_parallel.held.{name}"), difference, allowed=allowed, because=because)
