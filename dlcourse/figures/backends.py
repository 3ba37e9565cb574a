"""The figures and tables of lesson 02, each one call; what they rest on is checked, and said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import cost_model_figure
from dlcourse.figures.colors import ALGORITHMS
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.picture import Picture, flow_picture
from dlcourse.figures.tables import Table
from dlcourse.formulas.benchmark_plan import CALLS, COLLECTIVES, PROGRAMS, sweep_seconds
from dlcourse.formulas.collective_time import CostModel, fit_line
from dlcourse.words.strings import t
from dlcourse.words.units import digits, human_bytes, human_seconds

if TYPE_CHECKING:
    import plotly.graph_objects as go

Rows = Sequence[Mapping[str, Any]]
FIVE = ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast")
OURS = ("shared", "one_sided")  # backends of this course

# Networks of the explorable. Alpha: NCCL's all-reduce of 8 bytes took 163.4 us on 16 GPUs, over the
# 30 rounds of a ring (data/communication.json); inside a machine it is less, so minutes are at most
# these. Beta: the bandwidth in the slider's label; 476 GB/s is in the same file.
_ALPHA = 163.4e-6 / 30
NETWORKS = {"slow": (64, 10e9), "fast": (64, 50e9), "nvlink": (8, 476e9)}


def show_available(available: Mapping[str, bool], known: Sequence[str]) -> Table:
    """The backends of `torch.distributed` and DeepEP: what each is for, and whether it is here."""
    rows = [
        [name, t(f"backends.for.{name}"), t("backends.yes" if here else "backends.no")]
        for name, here in available.items()
    ]
    assert available["gloo"] and "deepep" not in known
    rows.append(["DeepEP", t("backends.for.deepep"), t("backends.no_backend")])
    return Table([t("backends.name"), t("backends.for"), t("backends.here")], rows)


def show_tried(
    dtypes: Mapping[str, Mapping[str, str]], calls: Mapping[str, str], *, labels: Mapping[str, str]
) -> Together:
    """What each backend makes of a sum in each dtype, and this pool's of calls that others lack.

    dtypes: backend -> dtype -> outcome, as `dlcourse.collectives.trials` gives it.
    """
    backends = list(dtypes)
    rows = [
        [name, *(_outcome(dtypes[b].get(name, "")) for b in backends)] for name in dtypes["torch"]
    ]
    tried = [[name, _outcome(outcome)] for name, outcome in calls.items()]
    return Together(
        Table([t("backends.dtype"), *(labels[b] for b in backends)], rows),
        Table([t("backends.call"), labels["torch"]], tried),
    )


def show_column(whole: Sequence[Sequence[float]], cured: Sequence[float], want: float) -> Together:
    """A matrix whose second column was summed as a view, and the column summed as a copy."""
    rows = [[f"{value:g}" for value in row] for row in whole]
    names = [t("backends.column.of", number=number) for number in range(len(whole[0]))]
    apart = largest(abs(value - want) for value in cured)
    return Together(
        Table(names, rows, caption=t("backends.column.caption", want=f"{want:g}")),
        _held("copy", apart, allowed=1e-6),
    )


def show_wire(rows: Rows, *, labels: Mapping[str, str]) -> Table | Said:
    """Bytes that a rank sends through the network of this machine in one all-reduce."""
    if not rows:
        return Said(t("backends.no_counters"))
    heads = [t("backends.all_reduce_of", size=human_bytes(rows[0]["bytes"])), t("backends.sent")]
    return Table(heads, [[labels[_backend(row)], human_bytes(row["wire"])] for row in rows])


def show_times(rows: Rows, collective: str, *, labels: Mapping[str, str]) -> go.Figure:
    """Time of a collective over its size: points measured, lines fitted, one for each backend.

    Sizes are those of torch's ranks. A record of another number of ranks may have others (bytes are
    rounded up to divide by the ranks): it is left out then, and stands in `show_costs` alone.
    """
    of = _by_backend(rows, collective)
    sizes = sorted(of["torch"])
    of = {name: seconds for name, seconds in of.items() if sorted(seconds) == sizes}
    times = {name: [of[name][size] for size in sizes] for name in of}
    fitted = {}
    for name, seconds in times.items():
        alpha, beta, _ = fit_line(zip(sizes, seconds, strict=True))
        fitted[name] = [alpha + beta * size for size in sizes]
    small, large = ({name: values[at] for name, values in times.items()} for at in (0, -1))
    said = {
        "call": t(f"backends.collective.{collective}"),
        "small": human_bytes(sizes[0]),
        "large": human_bytes(sizes[-1]),
        "small_ratio": digits(max(small.values()) / min(small.values())),
        "large_ratio": digits(max(large.values()) / min(large.values())),
    }
    return cost_model_figure(
        sizes,
        {labels[name]: values for name, values in times.items()},
        {labels[name]: values for name, values in fitted.items()},
        title=t("backends.times.title", **said),
        colors={labels[name]: ALGORITHMS[name] for name in times},
    )


def show_costs(rows: Rows, *, labels: Mapping[str, str]) -> Table:
    """Alpha and bandwidth of five collectives by each backend, fitted to five sizes."""
    table = []
    backends = [name for name in labels if any(_backend(row) == name for row in rows)]
    for collective in FIVE:
        of = _by_backend(rows, collective)
        cells = [_cost(of.get(name)) for name in backends]
        table.append([t(f"backends.collective.{collective}"), *cells])
    heads = [t("backends.costs"), *(labels[name] for name in backends)]
    return Table(heads, table, caption=t("backends.costs.caption"))


def labels_of(backend: str, recorded: Mapping[str, Any] | None) -> dict[str, str]:
    """What each maker of rows is called; MPI's rows may be a record's."""
    mpi = t("backends.mpi")
    if recorded is not None:
        mpi = t("backends.mpi.recorded", machine=recorded["machine"], date=recorded["date"])
    named = {"torch": backend.capitalize() if backend != "nccl" else "NCCL", "mpi": mpi}
    return named | {name: t(f"backends.ours.{name}") for name in OURS}


def show_published(record: Mapping[str, Any]) -> Together:
    """Figures of GPU libraries that others published, none of them measured here."""
    sources = list(dict.fromkeys(row["source"] for row in record["rows"]))
    rows = []
    for row in record["rows"]:
        rate = row.get("bytes_per_second")
        cell = f"{rate / 1e9:g} GB/s" if rate else human_seconds(row["seconds"])
        call, machine = _in_words(f"{row['what']}, {row['size']}"), _in_words(row["machine"])
        letter = "abcdefgh"[sources.index(row["source"])]
        rows.append([row["library"], call, machine, cell, letter])
    keys = ("library", "call", "machine", "value", "source")
    heads = [t(f"backends.published.{key}") for key in keys]
    caption = t("backends.published.caption", date=record["date"])
    letters = (f"{letter} {source}" for letter, source in zip("abcdefgh", sources, strict=False))
    return Together(
        Table(heads, rows, caption=caption), Said(f"{heads[-1]}: {' · '.join(letters)}")
    )


def _in_words(text: str) -> str:
    """The words of the record in the reader's language."""
    text = re.sub(
        r"([\d,]+) tokens", lambda found: t("backends.published.tokens", n=found[1]), text
    )
    for name in ("large", "local", "low_latency"):
        text = text.replace(name.replace("_", " "), t(f"backends.published.{name}"))
    return text


class BenchmarkFlow:
    """What to benchmark for a strategy, on which network, and how long that takes.

    strategies, networks: the values of both sliders, as words.
    """

    def __init__(self, rows: Rows) -> None:
        self._strategy = {t(f"backends.strategy.{name}"): name for name in CALLS}
        self._network = {t(f"backends.network.{name}"): name for name in NETWORKS}
        self.strategies, self.networks = list(self._strategy), list(self._network)
        self._ours = {
            name: sum(seconds.values())
            for name in FIVE
            if (seconds := _by_backend(rows, name).get("torch"))
        }

    def draw(self, strategy: str, network: str) -> Picture:
        """The flow chart at one position of the sliders."""
        strategy_name, network_name = self._strategy[strategy], self._network[network]
        calls, (gpus, _) = CALLS[strategy_name], NETWORKS[network_name]
        minutes = {name: self._sweep(name, network_name) for name in calls}
        boxes = {t(f"backends.collective.{name}"): name in calls for name in COLLECTIVES}
        spent = {
            t(
                "backends.plan.minutes",
                call=t(f"backends.collective.{name}"),
                minutes=_minutes(minutes[name]),
            )
            if name in calls
            else "\N{EN DASH}" + " " * i: name in calls
            for i, name in enumerate(COLLECTIVES)
        }
        lines = [  # under MPI, a process for each GPU; the sizes are those of SWEEP
            f"mpirun -n {gpus} ./build/{PROGRAMS[name][0]} -b 8 -e 8G -f 2 -g 1" for name in calls
        ]
        timed = [name for name in calls if name in self._ours]
        if timed:
            here = (2 + 10) * 3 * sum(self._ours[name] for name in timed)
            lines += ["", t("backends.plan.ours", seconds=human_seconds(here))]
            lines.append(f"python -m dlcourse.bench.backends --collectives {' '.join(timed)}")
        total = _minutes(sum(minutes.values()))
        title = t("backends.plan.title", strategy=strategy, count=len(calls), minutes=total)
        heads = [t(f"backends.plan.{key}") for key in ("strategy", "collective", "time")]
        chosen = {name: name == strategy for name in self.strategies}
        return flow_picture([chosen, boxes, spent], heads=heads, title=title, lines=lines)

    def minutes(self, strategy: str, network: str) -> float:
        """Minutes in all, by the names of `CALLS` and `NETWORKS`."""
        return sum(self._sweep(name, network) for name in CALLS[strategy])

    def _sweep(self, collective: str, network: str) -> float:
        gpus, rate = NETWORKS[network]
        model = CostModel(alpha=_ALPHA, beta=1 / rate)
        return sweep_seconds(collective, model, gpus) / 60


def figures_of_c6(
    available: Mapping[str, bool], known: Iterable[str], config: str
) -> dict[str, float]:
    """What this lesson found for claim C6, by the names of its figures."""
    drawn = {"nccl", "gloo", "mpi"}
    return {
        "mpi": int(available["mpi"]),
        "deepep": int("deepep" in known),
        "not_drawn": len({"ucc", "xccl"} & set(known) - drawn),
        "in_one_group": len(config.split(",")),
    }


def figures_of_c7(rows: Rows) -> dict[str, float]:
    """What this lesson measured for claim C7, by the names of its figures; nothing on GPUs.

    Where rows have ``samples``, taken in turns: the median of the turns' ratios, which moments in
    which other programs are busy change least.
    """
    of = {_backend(r): r for r in rows if r["collective"] == "all_to_all" and r["bytes"] == 4096}
    if not {"one_sided", "torch"} <= set(of):
        return {}
    keys = "samples" if "samples" in of["torch"] else "seconds"
    ours, theirs = (of[name][keys] for name in ("one_sided", "torch"))
    if keys == "seconds":
        return {"one_sided": ours / theirs}
    return {"one_sided": median(a / b for a, b in zip(ours, theirs, strict=True))}


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes >= 0.1 else "< 0.1"


def _cost(seconds: Mapping[int, float] | None) -> str:
    if not seconds:
        return t("backends.none")
    alpha, beta, _ = fit_line(seconds.items())
    rate = f"{1e-9 / beta:.2g} GB/s" if beta else ""
    return f"{human_seconds(alpha)}, {rate}"


def _by_backend(rows: Rows, collective: str) -> dict[str, dict[int, float]]:
    """backend -> bytes -> seconds."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["collective"] == collective:
            found.setdefault(_backend(row), {})[row["bytes"]] = row["seconds"]
    return found


def _backend(row: Mapping[str, Any]) -> str:
    return row["algorithm"].removesuffix("_" + row["collective"])


def _outcome(outcome: str) -> str:
    if outcome in ("right", "wrong", ""):
        return t(f"backends.outcome.{outcome or 'none'}")
    said = wrap(
        t("backends.outcome.refused", error=outcome), width=30, max_lines=2, placeholder=" …"
    )
    return "\n".join(said)


def _held(name: str, difference: float, *, allowed: float) -> Held:
    because = t(f"backends.held.{name}.because")
    return held(t(f"backends.held.{name}"), difference, allowed=allowed, because=because)


def said_missing(missing: str, recorded: Mapping[str, Any]) -> Said:
    """Where MPI is not installed: what is shown instead."""
    return Said(t("backends.missing", why=missing, machine=recorded["machine"]))
