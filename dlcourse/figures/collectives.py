"""The figures and tables of lesson 01, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from dlcourse.figures.charts import bars_figure, cost_model_figure, sweep_figure
from dlcourse.figures.collective_buffers import buffers_figure
from dlcourse.figures.colors import ALGORITHMS, CATEGORIES, RANKS
from dlcourse.figures.held import Held, Together, held, largest
from dlcourse.figures.known import known
from dlcourse.figures.picture import Picture, bars
from dlcourse.figures.tables import Table
from dlcourse.formulas import traffic
from dlcourse.formulas.collective_time import CostModel, fit
from dlcourse.words.strings import t
from dlcourse.words.units import apart_text, digits, human_bytes, human_seconds

if TYPE_CHECKING:
    import plotly.graph_objects as go

NETWORK = CostModel(alpha=5e-6, beta=1 / 50e9)  # 5 µs and 400 Gb/s for each rank
IMPOSED = CostModel(alpha=0.010, beta=1e-6)  # what the lesson imposes: 10 ms and 1 MB/s
SIZES = {
    "1 KiB": 2**10,
    "128 KiB": 2**17,
    "1 MiB": 2**20,
    "16 MiB": 2**24,
    "256 MiB": 2**28,
    "4 GiB": 2**32,
}
GPUS, GRADIENTS, CARD, CARDS = 64, 15e9, 50e9, 8  # of the first question; cards of a node
PUBLISHED = {16: 163.4e-6, 32: 319.4e-6, 64: 631.3e-6}  # GPUs -> seconds of 8 bytes
_COMPARED = ("ring", "tree", "direct")
_PIECES = ("one_to_all", "halves", "transpose")  # what `show_pieces` has a title for
_LONGEST = 10.0  # times the fastest: longer bars are cut there

Took = Mapping[int, Mapping[str, float]]  # bytes -> algorithm -> seconds
Rows = Sequence[Mapping[str, Any]]  # of `benchmark.measure`


def ring_tree_direct(tensor: str, ranks: int) -> Picture:
    """What three all-reduces take by the alpha-beta model, over the fastest of them.

    Args:
        tensor: one of ``SIZES``.

    Raises:
        ValueError: it is none, or there is one rank alone, which sends nothing.
    """
    size = known("tensor", tensor, SIZES)
    if ranks < 2:
        raise ValueError(f"ranks={ranks}: give 2 or more, one alone sends nothing")
    took = {name: _seconds(NETWORK, name, size, ranks) for name in _COMPARED}
    fastest = min(took.values())
    rows, texts = {}, {}
    for name, seconds in took.items():
        label = t(f"collectives.{name}")
        rows[label] = seconds / fastest
        rounds = int(traffic.algorithm(f"{name}_all_reduce").rounds(ranks))
        texts[label] = t("collectives.explore.text", time=human_seconds(seconds), rounds=rounds)
    key = "ring" if took["ring"] < took["tree"] else "tree"
    other = "tree" if key == "ring" else "ring"
    times = digits(took[other] / took[key])
    words: dict[str, Any] = {"size": tensor, "ranks": ranks, "times": times}
    title = t(f"collectives.explore.{key}", **words)
    axis = t("collectives.explore.axis")
    return bars(rows, title=title, axis=axis, limit=_LONGEST, texts=texts)


def show_pieces(title: str, before: Sequence[Any], **after: Sequence[Any]) -> go.Figure:
    """Who has which numbers, before and after each collective; `again` is one more of it."""
    if title not in _PIECES:
        raise ValueError(f"title is {title!r}: give one of {', '.join(_PIECES)}")
    stages = {t("collectives.before"): before}
    for op, numbers in after.items():
        key = "collectives.after_again" if op == "again" else "collectives.after"
        stages[t(key, op=op)] = numbers
    return buffers_figure(stages, title=t(f"collectives.pieces.{title}"))


def show_ring(history: Sequence[Sequence[Sequence[int]]]) -> go.Figure:
    """The chunks of each rank (first index) after each round (second) of a ring."""
    ranks, rounds = len(history), len(history[0])
    end = [list(rows[-1]) for rows in history]
    assert all(row == end[0] for row in end), f"the ranks disagree: {end}"
    labels = [t("collectives.start")]
    labels += [t("collectives.round", n=n) for n in range(1, rounds)]
    stages = {label: [rows[n] for rows in history] for n, label in enumerate(labels)}
    return buffers_figure(stages, title=t("collectives.pieces.ring", half=ranks - 1))


def show_sent(sent: Sequence[Mapping[str, int]]) -> go.Figure:
    """Bytes that each rank has sent in each kind of all-reduce."""
    names = list(sent[0])
    shown = {key: human_bytes(sent[0][key]) for key in ("naive", "ring")}
    return bars_figure(
        names,
        {t("figure.rank", rank=k): [own[name] for name in names] for k, own in enumerate(sent)},
        axis=t("collectives.axis.sent"),
        unit="bytes",
        colors=RANKS,
        title=t("collectives.sent", **shown),
    )


def show_equal(
    errors: Sequence[Mapping[str, float]],
    tolerance: float,
    sums: Sequence[Mapping[str, Any]],
) -> Together:
    """How far each all-reduce is from one process, and that all ranks hold the same bits."""
    worst = {name: largest(own[name] for own in errors) for name in errors[0]}
    first, *others = sums
    differ = sum(not np.array_equal(other[n], first[n]) for other in others for n in first)
    return Together(
        _held("one_process", largest(worst.values()), allowed=tolerance),
        _held("same_bits", differ, allowed=0),
        Table(
            [t("collectives.algorithm"), t("collectives.error")],
            [[name, apart_text(error)] for name, error in worst.items()],
        ),
    )


def ratio(took: Took, nbytes: int, first: str, second: str) -> float:
    """How many times the second one's time the first one took."""
    return took[nbytes][first] / took[nbytes][second]


def show_imposed(took: Took, ranks: int) -> go.Figure:
    """Measured with imposed times, beside the lines of the model that imposes them."""
    small, large = min(took), max(took)
    words = {"small": f"{small} B", "large": f"{large // 1000} kB"}
    words |= {
        "ring_small": digits(ratio(took, small, "ring", "tree")),
        "tree_large": digits(ratio(took, large, "tree", "ring")),
    }
    names = list(took[small])
    return cost_model_figure(
        list(took),
        {name: [each[name] for each in took.values()] for name in names},
        {name: [_seconds(IMPOSED, name, n, ranks) for n in took] for name in names},
        colors=ALGORITHMS,
        title=t("collectives.imposed", **words),
    )


def show_here(rows: Rows) -> go.Figure:
    """The same without imposed times, on this machine: time over that of the ring."""
    sizes, took = _by_algorithm(rows)
    relative = {
        name: [seconds / ring for seconds, ring in zip(own, took["ring"], strict=True)]
        for name, own in took.items()
    }
    words = {name: _until(sizes, relative[name], several=len(sizes)) for name in ("naive", "tree")}
    return sweep_figure(
        sizes,
        relative,
        x_title=t("figure.axis.buffer"),
        y_title=t("collectives.axis.over_ring"),
        x_unit="bytes",
        log_x=True,
        log_y=True,
        colors=ALGORITHMS,
        title=t("collectives.here", **words),
    )


def show_library(rows: Rows) -> Table:
    """Gloo's calls beside ours: time, and bytes that really left a rank."""
    by_name = {row["algorithm"]: row for row in rows}
    gloo = by_name["torch_all_reduce"]["samples"]
    table = []
    for name, row in by_name.items():
        turns = zip(row["samples"], gloo, strict=True)
        sent = human_bytes(row["wire"]) if row["wire"] else t("collectives.not_counted")
        owner, _, op = name.partition("_")
        table.append(
            [
                "torch (Gloo)" if owner == "torch" else owner,
                op,
                f"{median(a / b for a, b in turns):.2f}",
                human_bytes(row["wire_theory"]),
                sent,
            ]
        )
    heads = ("library", "collective", "over_gloo", "theory", "wire")
    return Table([t(f"collectives.{key}") for key in heads], table)


def show_strategies(by_strategy: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Bytes of each collective in one step of each strategy, by the algorithms."""
    found = {f"{k}: {op}": sent[op] for k, sent in by_strategy.items() for op in sent}
    return bars_figure(
        list(found),
        list(found.values()),
        axis=t("collectives.axis.sent_in_theory"),
        unit="bytes",
        colors=[CATEGORIES["communication"]] * len(found),
        title=t("collectives.strategy"),
    )


def show_cards() -> Table:
    """The first question's 64 GPUs: naive, one ring, and a ring for each card of a node."""
    network = CostModel(alpha=0.0, beta=1 / CARD)
    one = _seconds(network, "ring", GRADIENTS, GPUS)
    rows = [
        [t("collectives.cards.naive"), 1, _seconds(network, "naive", GRADIENTS, GPUS)],
        [t("collectives.cards.one"), 1, one],
        [t("collectives.cards.each"), CARDS, one / CARDS],
    ]
    heads = [t(f"collectives.cards.{key}") for key in ("way", "cards", "time")]
    return Table(heads, [[way, cards, f"{seconds:.2f} s"] for way, cards, seconds in rows])


def show_published() -> Table:
    """Published times of an all-reduce of 8 bytes, divided by the rounds of a ring."""
    heads = [t(f"collectives.published.{key}") for key in ("gpus", "time", "rounds", "alpha")]
    rows = [
        [p, human_seconds(seconds), 2 * (p - 1), human_seconds(seconds / (2 * (p - 1)))]
        for p, seconds in PUBLISHED.items()
    ]
    return Table(heads, rows)


def show_assumptions(rows: Rows) -> Table:
    """The model's error with a wire for each rank, and with one queue for all messages."""
    both = [row for row in rows if row["algorithm"] in ("tree_all_reduce", "ring_all_reduce")]
    return Table(
        [t("collectives.assumption"), t("collectives.fit_error")],
        [
            [t("collectives.own_wires"), f"{fit(both).error:.0%}"],
            [t("collectives.one_machine"), f"{fit(both, one_machine=True).error:.0%}"],
        ],
    )


def show_bandwidth(rows: Rows) -> go.Figure:
    """Bus bandwidth of each all-reduce over the size of the tensor."""
    sizes, _ = _by_algorithm(rows)
    found: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["bytes"]):
        found.setdefault(row["algorithm"].partition("_")[0], []).append(row["busbw"] / 1e6)
    best = max(found, key=lambda name: found[name][-1])
    words = {"name": best, "size": human_bytes(sizes[-1]), "rate": digits(found[best][-1])}
    return sweep_figure(
        sizes,
        found,
        x_title=t("figure.axis.buffer"),
        y_title=t("collectives.axis.bandwidth"),
        x_unit="bytes",
        y_unit="MB/s",
        log_x=True,
        log_y=True,
        colors=ALGORITHMS,
        title=t("collectives.bandwidth", **words),
    )


def figures_of_c1(by_strategy: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """What this lesson measured for claim C1, by the names of its figures."""
    total = {name: sum(sent.values()) for name, sent in by_strategy.items()}
    share = {k: 100 * sent.get("all_reduce", 0) / total[k] for k, sent in by_strategy.items()}
    return {
        "ddp_share": share["DDP"],
        "fsdp2_share": share["FSDP2"],
        "fsdp2_bytes": total["FSDP2"] / total["DDP"],
    }


def figures_of_c2(wire: Mapping[str, float | None]) -> dict[str, float]:
    """The same for claim C2; empty where the system does not count bytes."""
    whole = wire["torch_all_reduce"]
    names = {"gloo_share": "torch_reduce_scatter", "own_share": "direct_reduce_scatter"}
    sent = {key: wire[name] for key, name in names.items()}
    return {key: value / whole for key, value in sent.items() if value and whole}


def figures_of_c5(by_strategy: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The same for claim C5: kinds of collectives, and minutes of a sweep of nccl-tests."""
    runs, bus = 2 * (20 + 5), 10e9
    sizes = [8 << k for k in range(31)]
    seconds = sum(traffic.wire_bytes("all_reduce", n, GPUS) / bus for n in sizes)
    kinds = {f"{name.lower()}_kinds": len(sent) for name, sent in by_strategy.items()}
    return {"sweep_minutes": runs * seconds / 60, **kinds}


def _seconds(model: CostModel, name: str, nbytes: float, ranks: int) -> float:
    return model.predict(f"{name}_all_reduce", nbytes, ranks)


def _by_algorithm(rows: Rows) -> tuple[list[int], dict[str, list[float]]]:
    """The sizes, and the seconds of each algorithm for them."""
    took: dict[str, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["bytes"]):
        took.setdefault(row["algorithm"].partition("_")[0], []).append(row["seconds"])
    return sorted({row["bytes"] for row in rows}), took


def _until(sizes: Sequence[int], relative: Sequence[float], *, several: int) -> str:
    """Words for where an algorithm is ahead of the ring."""
    ahead = [n for n, times in zip(sizes, relative, strict=True) if times < 1]
    if len(ahead) == several:
        return t("collectives.here.everywhere")
    words: dict[str, Any] = {"ahead": len(ahead), "sizes": several}
    until = all(n in ahead for n in sizes[: len(ahead)]) and ahead
    if until:
        return t("collectives.here.until", size=human_bytes(ahead[-1]))
    return t("collectives.here.some", **words)


def _held(name: str, difference: float, *, allowed: float) -> Held:
    what = t(f"collectives.held.{name}")
    because = t(f"collectives.held.{name}.because")
    return held(what, difference, allowed=allowed, because=because)
