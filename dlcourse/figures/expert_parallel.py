"""The figures and tables of lesson 08, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import bars_figure, sweep_figure
from dlcourse.figures.colors import CATEGORIES, RANKS
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.picture import Picture, bars
from dlcourse.figures.tables import Table
from dlcourse.formulas.collective_time import fit_line
from dlcourse.formulas.traffic import distinct_ranks, expert_trip_bytes, wire_bytes
from dlcourse.parallel.divisibility import check_expert_parallel
from dlcourse.words.strings import t
from dlcourse.words.units import apart_text, digits, human_bytes, human_seconds

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

TOKENS, WIDTH, EXPERTS, TOP_K, RANKS_HERE = 128, 256, 8, 2, 4  # the layer of the lesson
LARGE_WIDTH, LARGE_EXPERTS = 7168, 256  # DeepSeek-V3's, whose tokens travel at 1 byte a number
WIRE, START = 50e9, 2e-6  # of the explorable: a 400 Gbit/s card for each GPU, 2 us a message


def check_ranks(num_ranks: int) -> None:
    """Raise a ``ValueError`` before any starts, where so many ranks cannot run the whole lesson.

    They share the experts, and in one section make two copies of each.
    """
    check_expert_parallel(num_experts=EXPERTS, size=num_ranks)
    if num_ranks % 2:
        raise ValueError(f"num_ranks={num_ranks}: two copies need 2 equal groups, give 2, 4 or 8")


def trip_bytes() -> float:
    """Bytes that a rank sends to others in one forward, there and back, with even routing."""
    return 2 * expert_trip_bytes(TOKENS, width=WIDTH, top_k=TOP_K, world_size=RANKS_HERE)


def tokens_on_the_wire(ranks: int, top_k: int) -> Picture:
    """What a token sends to other ranks in one dispatch, as copies and once for each rank.

    256 experts, width 7168, a byte a number. Time for 128 and for 4,096 tokens: a message to each
    other rank, one after the other, and the bytes at 50 GB/s.

    Raises:
        ValueError: one rank alone, which sends nothing.
    """
    if ranks < 2:
        raise ValueError(f"ranks={ranks}: give 2 or more, one alone sends nothing")
    copies, once = (
        wire_bytes("all_to_all", number, ranks)
        for number in (top_k, distinct_ranks(LARGE_EXPERTS, top_k, ranks))
    )
    rows, texts, times = {}, {}, {}
    for key, rows_sent in (("copies", copies), ("once", once)):
        label = t(f"expert_parallel.explore.{key}")
        rows[label] = rows_sent * LARGE_WIDTH / 1024
        times[key] = [
            (ranks - 1) * START + tokens * rows_sent * LARGE_WIDTH / WIRE for tokens in (128, 4096)
        ]
        few, many = map(human_seconds, times[key])
        texts[label] = t("expert_parallel.explore.times", few=few, many=many)
    share = (ranks - 1) * START / times["once"][0]
    title = t(
        "expert_parallel.explore.title",
        ranks=ranks,
        copies=digits(copies),
        once=digits(once),
        share=f"{share:.0%}",
    )
    axis = t("expert_parallel.explore.axis")
    return bars(rows, title=title, axis=axis, limit=60, texts=texts)


def show_traffic(rows: Sequence[Sequence[int]], run: Run) -> Together:
    """Copies from each rank to each other, and the bytes that they make.

    Args:
        rows: of each rank, how many copies it has sent to each rank.
        run: the forward in which they travelled, there and back.
    """
    p = len(rows)
    head = [t("expert_parallel.from_to"), *(t("figure.rank", rank=r) for r in range(p))]
    head += [t("expert_parallel.to_others")]
    table = []
    for rank, to in enumerate(rows):
        others = sum(to) - to[rank]
        table.append([t("figure.rank", rank=rank), *map(str, to), human_bytes(others * WIDTH * 4)])
    sent = sum(r["ops"]["all_to_all"]["wire_bytes"] for r in run.comm.ranks)
    counts = 8 * EXPERTS * (p - 1)  # numbers of 64 bits
    tokens = 2 * sum(sum(to) - to[rank] for rank, to in enumerate(rows)) * WIDTH * 4
    return Together(
        Table(head, table, caption=t("expert_parallel.copies")),
        _held("bytes", sent - tokens - counts, allowed=0),
    )


def sent_to_others(run: Run) -> float:
    """Bytes of tokens that a rank sent to others, as a mean over the ranks."""
    sent = [r["ops"]["all_to_all"]["wire_bytes"] for r in run.comm.ranks]
    p = len(sent)
    return sum(sent) / p - wire_bytes("all_to_all", 8 * EXPERTS, p)


def show_equal(apart: Mapping[str, float]) -> Together:
    """How far four ranks and one process are apart: loss, gradients, parameters."""
    rows = [[t(f"expert_parallel.equal.{name}"), apart_text(off)] for name, off in apart.items()]
    heads = [t("expert_parallel.equal.what"), t("expert_parallel.equal.off")]
    return Together(Table(heads, rows), _held("equal", largest(apart.values()), allowed=1e-5))


def show_calls(forward: Run, backward: Run) -> Table:
    """Collectives of one layer in each half of a step."""
    rows = []
    for name in ("all_gather", "all_to_all"):
        counts = [_calls(run, name) for run in (forward, backward)]
        rows.append([name, *map(str, counts), t(f"expert_parallel.calls.{name}")])
    keys = ("op", "forward", "backward", "why")
    return Table([t(f"expert_parallel.calls.{key}") for key in keys], rows)


def num_all_to_all(*runs: Run) -> int:
    """Calls of all-to-all by rank 0 in these runs together."""
    return sum(_calls(run, "all_to_all") for run in runs)


def show_imbalance(rows: Mapping[str, Sequence[int]]) -> go.Figure:
    """Rows that each rank's experts got, as a multiple of the mean."""
    p = len(next(iter(rows.values())))
    names = {name: t(f"expert_parallel.balance.{name}") for name in rows}
    values = {
        names[name]: [count * p / sum(counts) for count in counts] for name, counts in rows.items()
    }
    worst = {name: max(values[names[name]]) for name in rows}
    assert worst["forced"] < 1.1, f"busiest over mean: {worst}"
    if p > 2:  # two ranks may be even by chance
        assert worst["natural"] > 1.2, f"busiest over mean: {worst}"
    title = t(
        "expert_parallel.balance.title",
        natural=digits(worst["natural"]),
        loss=digits(worst["loss"]),
    )
    labels = [t("figure.rank", rank=rank) for rank in range(p)]
    axis = t("expert_parallel.balance.axis")
    colors = [RANKS[6], RANKS[7], CATEGORIES["other"]]  # of no rank that this lesson has
    return bars_figure(labels, values, axis=axis, title=title, unit="×", colors=colors, reference=1)


def show_slowest(rows: Mapping[str, Sequence[int]], seconds: Mapping[str, float]) -> Table:
    """The busiest rank's rows over the mean, and the layer's time over that of forced balance."""
    table = []
    for name, counts in rows.items():
        busiest = max(counts) * len(counts) / sum(counts)
        ratio = seconds[name] / seconds["forced"]
        table.append([t(f"expert_parallel.balance.{name}"), f"{busiest:.2f} ×", f"{ratio:.2f} ×"])
    head = ["expert_parallel.balance", "expert_parallel.busiest", "expert_parallel.layer_time"]
    return Table([t(key) for key in head], table)


def show_latency(steps: Mapping[float, float]) -> Table:
    """Time of a step with so much longer all-to-alls, and its growth as a multiple of the delay."""
    rows, first = [], steps[0.0]
    for delay, seconds in steps.items():
        more = f"{(seconds - first) / delay:.1f} ×" if delay else "–"
        rows.append([human_seconds(delay) if delay else "0", human_seconds(seconds), more])
    head = ["expert_parallel.delay", "expert_parallel.step", "expert_parallel.growth"]
    return Table([t(key) for key in head], rows)


def show_race(
    seconds: Mapping[int, Mapping[str, float]], mpi: Mapping[int, float] | None = None
) -> go.Figure:
    """Time of dispatch and combine by bytes that a rank sends, for each way to carry them.

    Args:
        seconds: bytes -> way -> time.
        mpi: bytes -> time of MPI's ranks, which are other processes; ``None`` where there is none.
    """
    names = ("gloo", "one_sided", "flag", "payload")
    series = {
        t(f"expert_parallel.race.{name}"): [times[name] for times in seconds.values()]
        for name in names
        if all(name in times for times in seconds.values())  # payload: on x86 alone
    }
    if mpi:
        series[t("expert_parallel.race.mpi")] = [mpi[size] for size in seconds]
    colors = dict(zip(series, (RANKS[i] for i in (5, 6, 7, 4, 3)), strict=False))
    small, large = seconds[TOKENS * WIDTH * 4], seconds[max(seconds)]
    title = t(
        "expert_parallel.race.title",
        flag=digits(small["flag"] / small["gloo"]),
        large=digits(large["one_sided"] / large["gloo"]),
    )
    return sweep_figure(
        list(seconds),
        series,
        x_title=t("expert_parallel.race.bytes"),
        y_title=t("expert_parallel.race.time"),
        title=title,
        x_unit="bytes",
        y_unit="seconds",
        log_x=True,
        log_y=True,
        colors=colors,
    )


def show_libraries(seconds: Mapping[str, Sequence[float]], apart: Mapping[str, float]) -> Together:
    """Forward and backward of the same layer in each library, in turns: the median of ratios."""
    rows = []
    for name, taken in seconds.items():
        ratio = median(one / ours for one, ours in zip(taken, seconds["ours"], strict=True))
        label = t(_LIBRARIES[name]) if name in _LIBRARIES else name
        rows.append([label, f"{ratio:.2f} ×", apart_text(apart[name])])
    if "DeepSpeed" not in seconds:
        rows.append(["DeepSpeed", t("expert_parallel.library.absent"), "–"])
    heads = [t(f"expert_parallel.library{key}") for key in ("", ".step", ".apart")]
    return Together(Table(heads, rows), _held("library", largest(apart.values()), allowed=1e-5))


_LIBRARIES = {
    "ours": "expert_parallel.library.ours",
    "ours, one-sided": "expert_parallel.library.one_sided",
    "ours, low latency": "expert_parallel.library.low_latency",
    "torch": "expert_parallel.library.torch",
}


def show_thousands(record: Mapping[str, Any]) -> Table:
    """One rank of thousands, by the number of ranks that share the experts; bytes of one step.

    Args:
        record: of ``data/experts_at_scale.json``.
    """
    rows = []
    for row in record["rows"]:
        sizes = (row[key] / 1e9 for key in ("parameters", "all_to_all", "all_gather", "all_reduce"))
        rows.append([f"{row['expert']:,}", *(f"{size:,.2f}" for size in sizes)])
    keys = ("ranks", "parameters", "tokens", "counts", "gradients")
    return Table([t(f"expert_parallel.thousands.{key}") for key in keys], rows)


def show_drift(found: Mapping[str, tuple[float, float]], *, ranks: int) -> Table:
    """Each optimizer with both scales: how far the copies are apart, and the ranks from one."""
    rows = []
    for name, (copies, alone) in found.items():
        optimizer, which = name.split(".")
        rows.append(
            [optimizer, t(f"expert_parallel.drift.{which}"), f"{copies:.1g}", apart_text(alone)]
        )
    assert not any(copies for copies, _ in found.values()), "copies of experts drift"
    right, wrong = found["SGD.right"][1], found["SGD.wrong"][1]
    if ranks > 2:  # two ranks have one expert group each: both scales are the same
        assert wrong > 100 * right, f"wrong scale off by {wrong:.1g}, right by {right:.1g}"
    keys = ("optimizer", "scale", "copies", "alone")
    return Table([t(f"expert_parallel.drift.{key}") for key in keys], rows)


def show_overlap(seconds: Mapping[str, float]) -> Table:
    """Forward of a layer with a shared expert: waiting for the rows at once, or after it."""
    rows = [
        [t(f"expert_parallel.overlap.{name}"), human_seconds(seconds[name])]
        for name in ("at_once", "background")
    ]
    return Table([t("expert_parallel.overlap"), t("expert_parallel.overlap.layer")], rows)


def show_published(record: Mapping[str, Any]) -> Together:
    """DeepEP's own figures, version 1 and version 2 apart."""
    first, second = record["v1"], record["v2"]
    rates = {row["ep"]: row for row in first["normal"]}
    rows = []
    for row in first["low_latency"]:
        rate = rates.get(row["ep"])
        both = f"{rate['dispatch_gbs']} / {rate['combine_gbs']} ({rate['over']})" if rate else "–"
        rows.append([str(row["ep"]), f"{row['dispatch_us']} / {row['combine_us']}", both])
    keys = ("ranks", "low_latency", "normal")
    tables = [
        Table(
            [t(f"expert_parallel.published.{key}") for key in keys],
            rows,
            caption=t("expert_parallel.published.v1", machine=first["machine"]),
        ),
        Table(
            [t(f"expert_parallel.published.{key}") for key in ("ranks", "v2.rate")],
            [[r["ep"], f"{r['dispatch_gbs']} / {r['combine_gbs']}"] for r in second["normal"]],
            caption=t("expert_parallel.published.v2", machine=second["machine"]),
        ),
    ]
    sources = t("expert_parallel.published.source", first=first["source"], second=second["source"])
    return Together(*tables, Said(sources))


def figures_of_c4(
    forward: Run,
    backward: Run,
    steps: Mapping[float, float],
    seconds: Mapping[int, Mapping[str, float]],
) -> dict[str, float]:
    """What this lesson measured for claim C4, by the names of its figures."""
    least, small, large = (seconds[size]["gloo"] for size in (min(seconds), 2**17, max(seconds)))
    most = max(steps)
    return {
        "forward": num_all_to_all(forward),
        "backward": num_all_to_all(backward),
        "growth": (steps[most] - steps[0.0]) / most,
        "small": 100 * least / small,
        "large": 100 * least / large,
    }


def latency_shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Claim C4's "small" and "large": the time for 4 KiB, in percent of that for 128 KiB and 4 MiB.

    Args:
        rows: of ``data/backends.json``, which has other sizes than this lesson: Gloo's times are
            read off the line fitted to them. Empty where its all-to-all is not among the rows.
    """
    found = [row for row in rows if row["algorithm"] == "torch_all_to_all"]
    if not found:
        return {}
    alpha, beta, _ = fit_line((row["bytes"], row["seconds"]) for row in found)
    sizes = {"small": 1 << 17, "large": 1 << 22}
    least = alpha + beta * 4096
    return {name: 100 * least / (alpha + beta * size) for name, size in sizes.items()}


def one_sided_ratio(seconds: Mapping[int, Mapping[str, float]]) -> float:
    """One-sided all-to-all over Gloo's at the smallest message, for claim C7."""
    least = seconds[min(seconds)]
    return least["one_sided"] / least["gloo"]


def _calls(run: Run, op: str) -> int:
    return run.comm.ranks[0]["ops"].get(op, {"calls": 0})["calls"]


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    what = t(f"expert_parallel.held.{name}")
    because = t(f"expert_parallel.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
