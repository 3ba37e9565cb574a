"""The figures and tables of lesson 07, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.picture import Picture, bars, columns, sentence, stacked_bars
from dlcourse.figures.tables import Table
from dlcourse.formulas.architectures import (
    active_parameters,
    compared_architectures,
    total_parameters,
    training_state_bytes,
)
from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.training.architecture_record import contracts, load, router_runs, short_runs
from dlcourse.words.strings import t
from dlcourse.words.units import apart_text, digits, human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from dlcourse.measure.run import Run

# The models of the lesson's own short runs
SHORT = compared_architectures(
    ArchitectureConfig(n_layer=2, n_head=4, n_embd=64, block_size=64, num_blocks=2)
)
MOE = SHORT["moe"]
EVEN = 100 * MOE.top_k / MOE.num_experts  # % of the tokens that use an expert, if all have the same
LAST = 15  # steps at the end of a short run, of which a mean is shown
_STATES = ("parameters", "gradients", "optimizer_state")
_KINDS = ("code", "english", "korean")

# Mixtral 8x7B: Jiang et al., "Mixtral of Experts", 2024, table 1; a gated expert has three matrices
_LAYERS, _WIDTH, _HIDDEN, _KEY_WIDTH, _VOCABULARY = 32, 4096, 14336, 1024, 32000
_V3, _V3_USED = 671e9, 37e9  # parameters of DeepSeek-V3, and those that a token uses

Result = Mapping[str, Any]  # of one training: `dlcourse.training.architectures.train`
Shares = Mapping[str, Sequence[Sequence[float]]]  # name -> layer -> share of each expert


# ------------------------------------------------------------------------ what a router does


def show_choices(text: str, experts: Sequence[Sequence[int]], weights: Sequence[Any]) -> Table:
    """For each byte of a text the experts that the router chose, and what they count for."""
    rows = []
    for name, chosen, parts in zip(_byte_names(text), experts, weights, strict=True):
        pairs = zip(chosen, parts, strict=True)
        rows.append([name, *(f"{expert}  ({part:.0%})" for expert, part in pairs)])
    return Table([t("moe.byte"), t("moe.first"), t("moe.second")], rows)


def _byte_names(text: str) -> list[str]:
    """A letter, or "손 2/3": the second of the three bytes of a Korean letter."""
    names = []
    for letter in text:
        size = len(letter.encode())
        shown = "␣" if letter == " " else letter
        names += [shown if size == 1 else f"{shown} {i + 1}/{size}" for i in range(size)]
    return names


def show_ways(found: Mapping[str, Mapping[str, float]]) -> Together:
    """Ways to compute one layer: multiplications, calls, equal outputs; ours is the first."""
    first = next(iter(found.values()))
    rows = []
    for name, way in found.items():
        ratio = way["flops"] / first["flops"]
        flops = f"{ratio:.2f} ×" if ratio > 0.5 else t("moe.way.not_counted")
        rows.append([t(f"moe.way.{name}"), flops, way["calls"], apart_text(way["apart"])])
    heads = [t(f"moe.way{key}") for key in ("", ".flops", ".calls", ".apart")]
    apart = largest(way["apart"] for way in found.values())
    return Together(Table(heads, rows), _held("same", apart, allowed=1e-5))


# ------------------------------------------------------------------------ memory


def show_states(dense: Run, moe: Run) -> Together:
    """What the ledger found while both models trained: states by category, and their ratio."""
    peaks = [run.memory.ranks[0]["peaks"] for run in (dense, moe)]
    rows = [
        [
            t(f"category.{name}"),
            *(human_bytes(peak[name]) for peak in peaks),
            f"{peaks[1][name] / peaks[0][name]:.2f} ×",
        ]
        for name in (*_STATES, "activations")
    ]
    flops = [run.throughput.flops for run in (dense, moe)]
    rows.append([t("moe.flops_of_step"), *map(_flops, flops), f"{flops[1] / flops[0]:.2f} ×"])
    names = [t("moe.name.dense"), t("moe.name.moe")]
    parameters = sum(peak["parameters"] for peak in peaks)
    formula = 4 * (total_parameters(SHORT["dense"]) + total_parameters(MOE))
    return Together(
        Table([t("moe.most"), *names, t("moe.ratio")], rows),
        _held("parameters", 100 * (parameters / formula - 1), allowed=1, unit="%"),
    )


def state_bytes_of(run: Run) -> int:
    """Parameters, gradients and optimizer state, each where a run had most of it."""
    return sum(run.memory.ranks[0]["peaks"][name] for name in _STATES)


def memory_of_experts(experts: int, top_k: int) -> Picture:
    """Mixtral's layers with another number of experts: what training holds, what a token uses.

    Bars in GB, 1e9 bytes, float32 with AdamW: 16 bytes a parameter.
    """
    if top_k > experts:
        return sentence(t("moe.sizes.refused", experts=experts, top_k=top_k))
    held_, used = (_mixtral(experts, computed) for computed in (experts, top_k))
    parts = {"parameters": 4, "gradients": 4, "optimizer_state": 8}
    rows = {
        t("moe.sizes.held"): {name: size * held_ / 1e9 for name, size in parts.items()},
        t("moe.sizes.used"): {"parameters": 4 * used / 1e9},
    }
    totals = {label: human_gb(sum(sizes.values())) for label, sizes in rows.items()}
    title = t(
        "moe.sizes.title",
        experts=experts,
        top_k=top_k,
        held=digits(held_ / 1e9),
        used=digits(used / 1e9),
        flops=digits(6 * used / 1e9),
    )
    return stacked_bars(rows, title=title, axis=t("moe.sizes.axis"), limit=1600, totals=totals)


def human_gb(value: float) -> str:
    """A number of GB, 1e9 bytes."""
    return f"{digits(value)} GB"


def _mixtral(experts: int, computed: int) -> float:
    """Numbers of the model of which ``computed`` experts count; the router scores all of them."""
    attention = 2 * _WIDTH * _WIDTH + 2 * _WIDTH * _KEY_WIDTH
    router_and_norms = experts * _WIDTH + 2 * _WIDTH
    expert = 3 * _WIDTH * _HIDDEN
    layer = attention + router_and_norms + computed * expert
    return _LAYERS * layer + 2 * _VOCABULARY * _WIDTH + _WIDTH


def show_v3() -> Table:
    """DeepSeek-V3 in float32 with AdamW: bytes that training holds, and what a token uses of them.

    Source: "DeepSeek-V3 Technical Report", 2024: 671 billion parameters, 37 billion for a token.
    """
    row = [f"{16 * _V3 / 1e12:.1f} TB", f"{_V3_USED / _V3:.1%}"]
    return Table([t("moe.v3.held"), t("moe.v3.used")], [row])


# ------------------------------------------------------------------------ who takes what


def experts_by_kind(frame: Mapping[str, Any]) -> Picture:
    """Of one look at a model in training: the share of each kind of text that uses each expert."""
    shares = {kind: [100 * MOE.top_k * s for s in frame["load"][kind]] for kind in _KINDS}
    everywhere = [fmean(column) for column in zip(*shares.values(), strict=True)]
    busiest = max(range(len(everywhere)), key=everywhere.__getitem__)
    korean = shares["korean"]
    own = max(range(len(korean)), key=lambda e: korean[e] - shares["english"][e])
    title = t(
        "moe.film.title",
        step=frame["step"],
        busiest=busiest,
        all=f"{everywhere[busiest]:.0f}%",
        own=own,
        korean=f"{korean[own]:.0f}%",
        english=f"{shares['english'][own]:.0f}%",
    )
    rows = {t(f"moe.kind.{kind}"): shares[kind] for kind in _KINDS}
    return columns(rows, title=title, axis=t("moe.film.axis"), limit=100, mark=EVEN)


# ------------------------------------------------------------------------ balance


def busiest_share(results: Sequence[Result], step: int | None = None) -> float:
    """% of the tokens that use the busiest expert of the last layer: the mean over the seeds.

    Args:
        step: one step; the last ``LAST`` by default.
    """
    layers = [_last(result["busiest"]) for result in results]
    return 100 * MOE.top_k * fmean(fmean(b[-LAST:]) if step is None else b[step] for b in layers)


def show_balance(results: Mapping[str, Sequence[Result]]) -> go.Figure:
    """The busiest expert of the last layer in each step, without balance and with each cure."""
    names = ("none", "loss", "bias")
    lines = {}
    for name in names:
        runs = [_last(result["busiest"]) for result in results[name]]
        lines[t(f"moe.balance.{name}")] = [
            100 * MOE.top_k * fmean(step) for step in zip(*runs, strict=True)
        ]
    steps = list(range(1, len(next(iter(lines.values()))) + 1))
    lines[t("moe.balance.even")] = [EVEN] * len(steps)
    without, loss, bias = (busiest_share(results[name]) for name in names)
    shown = {"without": f"{without:.0f}%", "loss": f"{loss:.0f}%", "bias": f"{bias:.0f}%"}
    return sweep_figure(
        steps,
        lines,
        x_title=t("moe.balance.step"),
        y_title=t("moe.balance.share"),
        y_unit="%",
        title=t("moe.balance.title", **shown),
    )


def show_cures(results: Mapping[str, Sequence[Result]]) -> Table:
    """What each cure costs in loss: here, seed by seed, and in the recorded runs.

    In those a router without balance stays collapsed to the end.
    """
    run = recorded_run()
    recorded = router_runs(run) if run else {}
    rows = []
    for name in ("none", "loss", "bias"):
        losses = [_loss(result) for result in results[name]]
        long = recorded.get(name)
        rows.append(
            [
                t(f"moe.balance.{name}"),
                f"{busiest_share(results[name]):.0f}%",
                " / ".join(f"{loss:.3f}" for loss in losses),
                f"{100 * MOE.top_k * long['busiest']:.0f}%" if long else "",
                f"{long['loss']:.3f}" if long else "",
                _price(long) if long and name != "none" else "",
            ]
        )
    keys = ("", ".busiest", ".loss", ".long_busiest", ".long", ".price")
    heads = [t(f"moe.cures{key}") for key in keys]
    return Table(heads, rows, caption=_recorded_routers(run) if run else "")


def _price(row: Mapping[str, float]) -> str:
    return f"{row['difference']:+.3f} ± {row['difference_spread'] / 2:.3f}"


def _recorded_routers(run: Mapping[str, Any]) -> str:
    """These were recorded later than the rest: each run says where and when."""
    first = run["runs"]["router/none/0"]
    return _recorded(
        {**run, "machine": first["machine"], "date": first["date"]}, run["short_steps"]
    )


def show_scores() -> Table | Said:
    """Of the recorded runs: how large a router's scores are, with the z-loss and without it."""
    run = recorded_run()
    if run is None:
        return Said(t("moe.not_recorded"))
    found = router_runs(run)
    labels = {"loss": "plain", "loss_z": "z", "large": "large", "large_z": "large_z"}
    rows = [
        [
            t(f"moe.scores.{label}"),
            f"{found[name]['largest']:.1f}",
            f"{found[name]['log_sum']:.1f}",
            f"{100 * MOE.top_k * found[name]['busiest']:.0f}%",
            f"{found[name]['loss']:.3f}",
            str(found[name]["seeds"]),
        ]
        for name, label in labels.items()
    ]
    keys = ("", ".largest", ".log_sum", ".busiest", ".loss", ".seeds")
    heads = [t(f"moe.scores{key}") for key in keys]
    return Table(heads, rows, caption=_recorded_routers(run))


# ------------------------------------------------------------------------ capacity


def shares_asked_for(results: Mapping[str, Sequence[Result]]) -> Shares:
    """What the trained routers ask for on held-out text: of the first seed, without any limit."""
    names = ("none", "loss", "bias")
    looks = {name: results[name][0]["looks"][-1]["load"] for name in names}
    return {
        name: [
            [fmean(kinds) for kinds in zip(*layer.values(), strict=True)] for layer in look.values()
        ]
        for name, look in looks.items()
    }


def dropped_share(shares: Sequence[Sequence[float]], factor: float) -> float:
    """% of the copies of tokens that are dropped, over all layers, if an expert has a limit.

    Args:
        shares: by layer, what part of the copies each expert is asked to take.
    """
    kept = [min(share, factor / len(layer)) for layer in shares for share in layer]
    return 100 * (1 - sum(kept) / len(shares))


def dropping(shares: Shares) -> Callable[[float], Picture]:
    """Draws, for a capacity factor, what is dropped with the routers of the short runs."""

    def at(capacity_factor: float) -> Picture:
        dropped = {name: dropped_share(s, capacity_factor) for name, s in shares.items()}
        empty = {name: 100 - (100 - d) / capacity_factor for name, d in dropped.items()}
        shown = {name: f"{d:.1f}%" for name, d in dropped.items()}
        labels = {name: t(f"moe.balance.{name}") for name in shares}
        texts = {
            labels[name]: t("moe.dropped.text", share=shown[name], empty=f"{empty[name]:.0f}%")
            for name in shares
        }
        key = "moe.dropped.title" if max(dropped.values()) > 0.05 else "moe.dropped.none"
        title = t(key, factor=capacity_factor, **shown)
        rows = {labels[name]: d for name, d in dropped.items()}
        return bars(rows, title=title, axis=t("moe.dropped.axis"), limit=80, texts=texts)

    return at


# ------------------------------------------------------------------------ architectures compared


def show_short(results: Mapping[str, Sequence[Result]]) -> Together:
    """The lesson's own runs: two contracts, the loss of each seed, and how sure that is."""
    names = {"dense": "dense", "moe": "loss", "dense_total": "dense_total"}
    losses = {name: [_loss(r) for r in results[run]] for name, run in names.items()}
    rows = [
        [
            t(f"moe.name.{name}"),
            f"{active_parameters(SHORT[name]):,}",
            f"{total_parameters(SHORT[name]):,}",
            *(f"{loss:.3f}" for loss in losses[name]),
        ]
        for name in names
    ]
    seeds = [t("moe.short.seed", seed=seed) for seed in range(len(losses["dense"]))]
    heads = [t(f"moe.short{key}") for key in ("", ".active", ".total")]
    difference = fmean(losses["moe"]) - fmean(losses["dense"])
    spread = max(max(values) - min(values) for values in losses.values())
    key = "unsure" if abs(difference) < 2 * spread else "hint"
    said = t(f"moe.short.{key}", difference=f"{difference:+.3f}", spread=f"{spread:.3f}")
    return Together(Table([*heads, *seeds], rows), Said(said))


def recorded_run() -> dict[str, Any] | None:
    """The long run that is recorded; None where it is not, or not to its end."""
    try:
        run = load()
        contracts(run), short_runs(run, "balance"), router_runs(run)
    except (FileNotFoundError, KeyError):
        return None
    return run


def show_contracts() -> Table | Said:
    """The recorded runs under all three contracts; the first row of each is what others beat."""
    run = recorded_run()
    if run is None:
        return Said(t("moe.not_recorded"))
    rows: list[list[str]] = []
    for contract, models in contracts(run).items():
        for name, row in models.items():
            first = name == next(iter(models))
            better = "better" if row["difference"] < 0 else "worse"
            sure = abs(row["difference"]) > row["difference_spread"]
            rows.append(
                [
                    t(f"moe.contract.{contract}") if first else "",
                    t(f"moe.name.{name}"),
                    f"{row['loss']:.3f}",
                    "" if first else f"{row['difference']:+.3f}",
                    "" if first else f"± {row['difference_spread'] / 2:.3f}",
                    "" if first else t(f"moe.contract.{better if sure else 'draw'}"),
                ]
            )
    keys = ("", ".model", ".loss", ".difference", ".seeds", ".verdict")
    heads = [t(f"moe.contract{key}") for key in keys]
    return Table(heads, rows, caption=_recorded(run, run["steps"]))


def costs() -> list[str]:
    """The names of what an architecture costs, for a slider."""
    return list(_costs())


def _costs() -> dict[str, str]:
    keys = ("flops_per_token", "parameters", "state_bytes", "seconds")
    return {t(f"moe.cost.{key}"): key for key in keys}


def loss_and_cost(cost: str) -> Picture:
    """What each architecture costs in one coin, beside the loss after equal numbers of steps.

    Args:
        cost: one of ``costs()``.
    """
    run = recorded_run()
    if run is None:
        return sentence(t("moe.not_recorded"))
    found = contracts(run)
    losses = {name: row["loss"] for name, row in (found["active"] | found["total"]).items()}
    key = _costs()[cost]
    spent = {
        name: run["seconds"][name] if key == "seconds" else run["sizes"][name][key]
        for name in losses
    }
    ratios = {name: value / spent["dense"] for name, value in spent.items()}
    order = sorted(losses, key=losses.__getitem__)
    labels = {name: t(f"moe.name.{name}") for name in order}
    rows = {labels[name]: ratios[name] for name in order}
    texts = {
        labels[name]: t("moe.cost.text", ratio=f"{ratios[name]:.2f}", loss=f"{losses[name]:.3f}")
        for name in order
    }
    best = order[0]
    title = t("moe.cost.title", best=labels[best], ratio=f"{ratios[best]:.2f}", cost=cost)
    return bars(rows, title=title, axis=t("moe.cost.axis", cost=cost), limit=4, texts=texts)


def _last(by_layer: Mapping[Any, Any]) -> Any:
    return by_layer[max(by_layer, key=int)]


def _recorded(run: Mapping[str, Any], steps: int) -> str:
    """Of a recorded run: how long, where and when."""
    return t(
        "moe.contract.caption",
        steps=steps,
        seeds=len(run["seeds"]),
        machine=run["machine"],
        date=run["date"],
    )


def _loss(result: Result) -> float:
    """Held-out, over the last looks: one look depends on the last batches."""
    return fmean(look["loss"]["mean"] for look in result["looks"][-3:])


def _flops(value: float) -> str:
    return f"{digits(value / 1e9)} GFLOP"


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    because = t(f"moe.held.{name}.because")
    what = t(f"moe.held.{name}")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)


def state_ratio() -> float:
    """Training's states of the lesson's MoE over those of the dense model, by formula."""
    moe, dense = (sum(training_state_bytes(SHORT[name]).values()) for name in ("moe", "dense"))
    return moe / dense


def show_capacity() -> Table | Said:
    """Recorded: what a limit drops, and what that costs in loss, against none."""
    run = recorded_run()
    if run is None:
        return Said(t("moe.not_recorded"))
    rows = [
        [
            t("moe.capacity.dropless") if factor == "None" else factor,
            f"{100 * row['dropped']:.1f}%",
            f"{row['loss']:.3f}",
            "" if factor == "None" else f"{row['difference']:+.3f}",
            "" if factor == "None" else f"± {row['difference_spread'] / 2:.3f}",
        ]
        for factor, row in short_runs(run, "capacity").items()
    ]
    heads = [t("moe.capacity"), t("moe.capacity.dropped")]
    heads += [t(f"moe.contract.{key}") for key in ("loss", "difference", "seeds")]
    return Table(heads, rows, caption=_recorded(run, run["short_steps"]))


def figures_of_a2(results: Mapping[str, Sequence[Result]]) -> dict[str, float]:
    """Of the lesson's own models and short runs, for claim A2, by the names of its figures."""
    dense, total, moe = (
        fmean(_loss(result) for result in results[name])
        for name in ("dense", "dense_total", "loss")
    )
    return {
        "parameters": total_parameters(MOE) / total_parameters(SHORT["dense"]),
        "active": active_parameters(MOE) / active_parameters(SHORT["dense"]),
        "equal_active": moe - dense,
        "equal_total": moe - total,
    }
