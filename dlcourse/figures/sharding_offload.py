"""The figures and tables of lesson 12, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from dlcourse.figures.gantt import gantt_figure
from dlcourse.figures.held import Held, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.picture import Bar, Picture, lanes
from dlcourse.figures.tables import Table
from dlcourse.formulas.activations import activation_peak
from dlcourse.formulas.devices import at_peak, device_needs
from dlcourse.formulas.offload import LANES, OffloadJob, moved_bytes, offloaded_step
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.states import offloaded_state_bytes
from dlcourse.parallel.pipeline_schedules import Action, one_f_one_b
from dlcourse.parallel.pipeline_simulation import Gantt, simulate
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes, human_seconds

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

CONFIG = GPTConfig(n_layer=100, n_head=2, n_embd=24, block_size=32)  # whose layers are divided
BATCH: dict[str, Any] = {"micro_batch": 2, "block": 32}
BIG = GPTConfig(n_layer=100, n_head=16, n_embd=1120, block_size=1024)  # the claim's: 6 GB
BIG_BATCH: dict[str, Any] = {"micro_batch": 1, "block": 1024}
SMALL = GPTConfig(n_layer=8, n_head=2, n_embd=64, block_size=32)  # whose state is offloaded
STATES = ("parameters", "gradients", "optimizer_state")
FORWARD, BACKWARD = 0.05, 0.10  # imposed seconds of a device's layers
LATENCY, BANDWIDTH = 0.005, 1e6  # imposed, of the line between devices
SLOWER = 4  # times as long takes the slow device
MICRO_BATCHES = 8
# An example, no product's figures: 6.4 billion parameters in 16 bits, 8,192 tokens a step, a device
# that computes 100 TFLOP/s, a host that computes 10 and moves 100 GB/s in Adam (28 bytes each)
EXAMPLE = OffloadJob(
    forward=2 * 0.8e9 * 8192 / 100e12,
    backward=4 * 0.8e9 * 8192 / 100e12,
    nbytes=2 * 0.8e9,
    rest=0.0,
    stream=2 * 8192 * 4096,
    update=28 * 0.8e9 / 100e9,
    latency=1e-5,
)
SECONDS = 14  # where the example's axis ends

Spans = list[list[tuple[float, float, Action]]]  # of each device, in seconds
Sizes = Mapping[str, int]  # category -> bytes
Moments = Sequence[float]  # a step's start, end of forward, end of backward, end; in seconds
_CATEGORY = {"forward": "activations", "backward": "gradients"}


def divided(n_layer: int, devices: int) -> list[int]:
    """As many layers for each device, as near as it goes: 33, 33, 34."""
    cuts = [n_layer * i // devices for i in range(devices + 1)]
    return [b - a for a, b in pairwise(cuts)]


def show_needs(run: Run) -> go.Figure:
    """What each device holds at its highest moment; states and peak are those of the formula."""
    needs = _needs(run)
    for rank, need in zip(run.memory.ranks, needs, strict=True):
        off = largest(abs(rank["end"][name] - need[name]) for name in STATES)
        _held("states", off, allowed=0)
        _held("peak", _percent(rank["peak_bytes"], at_peak(need)), allowed=5, unit="%")
    sizes = divided(CONFIG.n_layer, len(needs))
    rows = {_device(i, sizes): rank["at_peak"] for i, rank in enumerate(run.memory.ranks)}
    share = 100 * rows[_device(1, sizes)]["parameters"] / sum(rows[_device(1, sizes)].values())
    return memory_by_category_figure(rows, title=t("sharding_offload.needs", share=share))


def show_limits(run: Run, limit: int) -> Together:
    """Each device's limit, what the plan says, and what the ledger says."""
    found = [rank["peak_bytes"] for rank in run.memory.ranks]
    planned = [sum(at_peak(need).values()) for need in _needs(run)]
    assert max(found) <= limit, f"{found} are over {limit}"
    rows = [
        [t("sharding_offload.device", device=i), *map(human_bytes, (limit, *pair))]
        for i, pair in enumerate(zip(planned, found, strict=True))
    ]
    off = largest(abs(100 * (a / b - 1)) for a, b in zip(found, planned, strict=True))
    heads = ["", *(t(f"sharding_offload.{key}") for key in ("limit", "planned", "measured"))]
    return Together(Table(heads, rows), _held("peak", off, allowed=5, unit="%"))


def show_same(same: Sequence[bool], want: float, got: float) -> Together:
    """The last loss of one process and of the divided model, and that nothing differs."""
    heads = ["", t("sharding_offload.loss")]
    rows = [
        [t("sharding_offload.whole"), f"{want:.6f}"],
        [t("sharding_offload.divided"), f"{got:.6f}"],
    ]
    different = largest((sum(not s for s in same), want != got))
    return Together(Table(heads, rows), _held("bits", different, allowed=0))


def show_relay(alone: float, three: Spans, slow: Spans) -> go.Figure:
    """Devices in a row with imposed times: equal, one of them slow, and with micro-batches.

    alone: seconds of a step on one device that does it all.
    three, slow: spans of each device, in seconds.
    """
    equal, uneven = Gantt(three), Gantt(slow)
    for gantt in (equal, uneven):
        times = sorted(span for row in gantt.spans for span in row)
        assert all(a[1] <= b[0] for a, b in pairwise(times)), "two at a time"
    assert 0.9 * alone < equal.total < uneven.total / 1.3, (alone, equal.total, uneven.total)
    forward, half = FORWARD / MICRO_BATCHES, BACKWARD / MICRO_BATCHES / 2
    many = simulate(one_f_one_b(len(three), MICRO_BATCHES), t_F=forward, t_B=half, t_W=half)
    words: dict[str, Any] = {"m": MICRO_BATCHES, "slower": SLOWER, "alone": human_seconds(alone)}
    panels = {
        t(f"sharding_offload.relay.{key}", seconds=human_seconds(gantt.total), **words): gantt.spans
        for key, gantt in (("equal", equal), ("slow", uneven), ("many", many))
    }
    words = {"devices": len(three), "alone": human_seconds(alone)}
    title = t("sharding_offload.relay", together=human_seconds(equal.total), **words)
    return gantt_figure(panels, title=title, seconds=True)


def show_full(full: Mapping[str, Sizes], devices: int) -> go.Figure:
    """The claim's own size: what each device holds at its highest moment.

    full: "peaks" and "at_peak" of device 1, measured over forward and backward.
    """
    sizes = divided(BIG.n_layer, devices)
    needs = device_needs(BIG, sizes, **BIG_BATCH)
    measured, middle = full["peaks"], needs[1]
    assert measured["parameters"] == measured["gradients"] == middle["parameters"]
    off = 100 * (measured["activations"] / middle["activations"] - 1)
    _held("peak", off, allowed=5, unit="%")
    there = sum(full["at_peak"].values()) + middle["optimizer_state"]
    _held("peak", _percent(there, at_peak(middle)), allowed=5, unit="%")
    rows = {
        t("sharding_offload.full.planned", device=i, layers=sizes[i]): at_peak(need)
        for i, need in enumerate(needs)
    }
    totals = [sum(row.values()) / 2**30 for row in rows.values()]
    state = {"optimizer_state": middle["optimizer_state"]}
    rows[t("sharding_offload.full.measured", device=1)] = {**full["at_peak"], **state}
    words: dict[str, Any] = {
        "each": middle["parameters"] / 2**30,
        "low": min(totals),
        "high": max(totals),
    }
    return memory_by_category_figure(rows, title=t("sharding_offload.full", **words))


def figures_of_d4(full: Mapping[str, Sizes], idle: float) -> dict[str, Any]:
    """What this lesson measured for claim D4, by the names of its figures."""
    middle = device_needs(BIG, divided(BIG.n_layer, 3), **BIG_BATCH)[1]
    peaks = full["peaks"]
    highest = peaks["parameters"] + middle["optimizer_state"] + peaks["activations"]
    return {
        "weights": peaks["parameters"] / 1e9,
        "states": sum(middle[name] for name in STATES) / 1e9,
        "activations": peaks["activations"] / 1e9,
        "peak": highest / 1e9,
        "idle": idle,
    }


def show_first(moved: Mapping[str, float], same: Sequence[bool]) -> Together:
    """That one step with the host took Adam's step, bit for bit, and what it moved."""
    want = 4 * num_parameters(SMALL)
    rows = [[t(f"sharding_offload.{key}"), f"{count:,.0f}"] for key, count in moved.items()]
    return Together(
        Table(["", t("sharding_offload.bytes")], rows),
        _held("moved", largest(abs(count - want) for count in moved.values()), allowed=0),
        _held("adam", sum(not each for each in same), allowed=0),
    )


def show_overlap(
    device: Mapping[str, Moments], host: Mapping[str, Sequence[tuple[float, float]]]
) -> Together:
    """A step of the offload with imposed times: each move waited for, and behind backward.

    device: "late" and "soon" -> a step's moments.
    host: the same -> when it updated.
    """
    rows, told = {}, []
    for key, moments in device.items():
        start, forward, backward, end = (1000 * (each - moments[0]) for each in moments)
        parts = (
            (start, forward, "activations", "forward"),
            (forward, backward, "gradients", "backward"),
            (backward, end, "communication", "waits"),
        )
        rows[t(f"sharding_offload.lane.device.{key}")] = [
            Bar(start=a, end=b, category=kind, words=t(f"sharding_offload.{word}"))
            for a, b, kind, word in parts
        ]
        rows[t(f"sharding_offload.lane.host.{key}")] = [
            Bar(
                start=1000 * (a - moments[0]),
                end=1000 * (b - moments[0]),
                category="optimizer_state",
            )
            for a, b in host[key]
        ]
        told.append((key, (end - start) / 1000))
    assert told[1][1] < 0.8 * told[0][1], f"overlap won nothing: {told}"
    job, late = OffloadJob(), told[0][1]
    table = [
        [
            t(f"sharding_offload.way.{key}"),
            human_seconds(offloaded_step(job, "optimizer", overlap=key == "soon").seconds),
            human_seconds(seconds),
            f"{late / seconds:.2f}×",
        ]
        for key, seconds in told
    ]
    heads = [t(f"sharding_offload.{key}") for key in ("way", "planned", "measured", "faster")]
    title = t("sharding_offload.overlap", ratio=late / told[1][1])
    limit = 100 * (int(10 * late) + 1)
    picture = lanes(rows, title=title, axis=t("sharding_offload.axis.ms"), limit=limit)
    return Together(picture, Table(heads, table))


def step_over_link(on_host: str, link_gb: int, overlap: str) -> Picture:
    """Who is busy when in a step of the example, by formula.

    Args:
        on_host: a way of ``dlcourse.formulas.offload``.
        link_gb: bandwidth each way, in GB/s.
        overlap: "no" or "yes".
    """
    job = replace(EXAMPLE, bandwidth=1e9 * link_gb)
    step = offloaded_step(job, on_host, overlap=overlap == "yes")
    out, back = moved_bytes(job, on_host)
    words: dict[str, Any] = {
        "what": t(f"sharding_offload.explore.{on_host}"),
        "moved": f"{(out + back) / 1e9:.3g}",
        "seconds": f"{step.seconds:.1f}",
        "busy": f"{step.busy('device') / step.seconds:.0%}",
    }
    return lanes(
        {t(f"sharding_offload.lane.{name}"): _joined(step.lanes[name]) for name in LANES},
        title=t("sharding_offload.explore.title", **words),
        axis=t("sharding_offload.axis.s"),
        limit=SECONDS,
    )


def show_memory(
    device: Mapping[str, Sizes], host: Mapping[str, Sizes], losses: Mapping[str, Sequence[float]]
) -> go.Figure:
    """What is on the device at its highest moment, and what has gone to the host."""
    first = next(iter(losses.values()))
    assert all(found == first for found in losses.values()), losses
    peak = activation_peak(SMALL, **BATCH)
    _held("peak", 100 * (device["soon"]["activations"] / peak - 1), allowed=5, unit="%")
    rows = {t(f"sharding_offload.on.{key}"): sizes for key, sizes in device.items()}
    totals = {key: human_bytes(sum(sizes.values())) for key, sizes in device.items()}
    rows |= {t(f"sharding_offload.host.{key}"): sizes for key, sizes in host.items()}
    return memory_by_category_figure(rows, title=t("sharding_offload.memory", **totals))


def show_libraries(
    plain: tuple[float, Sizes], ours: tuple[float, Sizes], peers: Sequence[tuple[float, Sizes]]
) -> Table:
    """The loss after one step and the largest memory, of ours and of FSDP2.

    Each: the loss, and bytes by category at the highest moment of the rank that computes.
    """
    names = [t("sharding_offload.whole"), t("sharding_offload.ours")]
    names += ["FSDP2", "FSDP2 + CPUOffloadPolicy"]
    rows = []
    for name, (loss, sizes) in zip(names, (plain, ours, *peers), strict=True):
        assert abs(loss - plain[0]) < 1e-4, f"{name}: {loss}, and not {plain[0]}"
        rows.append([name, f"{loss:.6f}", human_bytes(sum(sizes.values()))])
    heads = [t(f"sharding_offload.{key}") for key in ("library", "loss", "peak")]
    return Table(heads, rows)


def show_host_memory() -> Table:
    """Bytes in each rank's host memory where ranks share 7 billion parameters in 16 bits."""
    whole = offloaded_state_bytes(7_000_000_000, value_bytes=2)
    rows = [[str(ranks), f"{whole / ranks / 1e9:.1f} GB"] for ranks in (1, 8, 64)]
    return Table([t("sharding_offload.ranks"), t("sharding_offload.each")], rows)


def show_devices(found: Mapping[str, Any]) -> Together:
    """The model in one process on several devices: its loss, and the undivided one's."""
    heads = [t("sharding_offload.devices"), t("sharding_offload.loss")]
    rows = [
        [t("sharding_offload.whole"), f"{found['whole']:.4f}"],
        [", ".join(found["devices"]), f"{found['loss']:.4f}"],
    ]
    return Together(
        Table(heads, rows), _held("loss", abs(found["loss"] - found["whole"]), allowed=1e-4)
    )


def show_traffic(traffic: Mapping[str, Sequence[int]]) -> Together:
    """Bytes out and back in a step, and the most gradients that were alive, of each way."""
    late, soon, parameters = (traffic[key] for key in ("late", "soon", "parameters"))
    whole = 4 * num_parameters(SMALL)
    assert late[2] == whole > 2 * soon[2], traffic
    rows = [
        [t(f"sharding_offload.way.{key}"), *(f"{count:,}" for count in row)]
        for key, row in traffic.items()
    ]
    job = OffloadJob()
    for key, row in (("optimizer", soon), ("parameters", parameters)):
        off = largest(abs(a - b) for a, b in zip(row, moved_bytes(job, key), strict=False))
        line = _held("traffic", off, allowed=0)
    heads = [t(f"sharding_offload.{key}") for key in ("way", "out", "back", "gradients")]
    return Together(Table(heads, rows), line)


def show_unified(kept: Sequence[Sizes]) -> go.Figure:
    """Where both memories are one: what is kept between steps, without offload and with it."""
    plain, offloaded = (sum(sizes.values()) for sizes in kept)
    names = [t(f"sharding_offload.unified.{key}") for key in ("no", "yes")]
    title = t("sharding_offload.unified", ratio=offloaded / plain)
    return memory_by_category_figure(dict(zip(names, kept, strict=True)), title=title)


def show_load(whole: Sequence[Sizes], own: Sequence[Sizes], same: Sequence[bool]) -> go.Figure:
    """Largest memory of a rank that loads the whole model, and of one that reads its layers."""
    assert all(same), "the weights differ"
    rows = {t("sharding_offload.load.whole"): whole[1], t("sharding_offload.load.own"): own[1]}
    title = t("sharding_offload.load", ratio=times_more(whole, own))
    return memory_by_category_figure(rows, title=title)


def times_more(whole: Sequence[Sizes], own: Sequence[Sizes]) -> float:
    """Memory for the whole model over that for a rank's own layers, in rank 1."""
    return sum(whole[1].values()) / sum(own[1].values())


def _needs(run: Run) -> list[dict[str, float]]:
    return device_needs(CONFIG, divided(CONFIG.n_layer, len(run.memory.ranks)), **BATCH)


def _device(device: int, sizes: Sequence[int]) -> str:
    return t("sharding_offload.device.layers", device=device, layers=sizes[device])


def _percent(found: float, need: Mapping[str, float]) -> float:
    return 100 * (found / sum(need.values()) - 1)


def _joined(spans: Sequence[tuple[float, float, str]]) -> list[Bar]:
    """Spans of one kind that follow each other without a gap, as one bar with a word."""
    found: list[list[Any]] = []
    for start, end, what in spans:
        if found and found[-1][2] == what and start - found[-1][1] < 0.01:
            found[-1][1] = end
        else:
            found.append([start, end, what])
    return [
        Bar(
            start=start,
            end=end,
            category=_CATEGORY.get(what, what),
            words=t(f"sharding_offload.{what}"),
        )
        for start, end, what in found
    ]


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    what = t(f"sharding_offload.held.{name}")
    because = t(f"sharding_offload.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
