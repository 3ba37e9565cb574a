"""The figures and tables of lesson 14, each one call; what they rest on is checked, and said."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.memory_by_category import memory_by_category_figure
from dlcourse.figures.tables import Table
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    import plotly.graph_objects as go

Found = Mapping[str, Mapping[str, Any]]  # "deepspeed" and "by_hand", of one row
WAYS = ("deepspeed", "by_hand")
ROWS = (
    *("none", "accumulate", "bf16", "block", "checkpoint"),
    *("zero3", "offload", "offload_param", "all"),
)
# bfloat16 has 8 significant bits: at a loss between 4 and 8 its neighbours are 1/32 apart
BF16_STEP = 1 / 32


def show_trained(losses: Mapping[str, Sequence[float]]) -> Together:
    """The losses of some steps, both ways: the visible loops of the lesson."""
    ways = [way for way in WAYS if way in losses]
    rows = [
        [step, *(f"{losses[way][step]:.6f}" for way in ways)]
        for step in range(len(losses["by_hand"]))
    ]
    table = Table([t("deepspeed_vs_mps.step"), *(t(f"deepspeed_vs_mps.{w}") for w in ways)], rows)
    if len(ways) < len(WAYS):
        return Together(table, Said(t("deepspeed_vs_mps.absent")))
    apart = largest(abs(a - b) for a, b in zip(*(losses[way] for way in WAYS), strict=True))
    return Together(table, _held("same", apart, allowed=1e-5))


def show_side_by_side(
    found: Mapping[str, Found], *, lines: Mapping[str, Sequence[int]]
) -> Together:
    """All savings, both ways in one table.

    lines: row -> lines of JSON, of code beside it, of code by hand, of modules behind that.
    """
    heads = [t("deepspeed_vs_mps.saving")]
    for key in ("loss", "peak", "sent"):
        heads += [t(f"deepspeed_vs_mps.{key}.of", way=t(f"deepspeed_vs_mps.{w}")) for w in WAYS]
    heads += [t("deepspeed_vs_mps.ratio"), t("deepspeed_vs_mps.lines")]
    rows = []
    for name in (name for name in ROWS if name in found):
        ways, row = found[name], [t(f"deepspeed_vs_mps.row.{name}")]
        for cell in (_loss, _peak, _sent):
            row += [_cell(ways, way, cell) for way in WAYS]
        row += [_cell(ways, "by_hand", _time), _lines_cell(lines.get(name))]
        rows.append(row)
    said = []
    if "deepspeed" in found["none"]:
        halves = ("bf16", "all")
        far = largest(_apart(ways) for name, ways in found.items() if name not in halves)
        far_16 = largest(_apart(found[name]) for name in halves)
        said = [
            _held("same", far, allowed=1e-5),
            _held("same_bf16", far_16, allowed=2 * BF16_STEP),
        ]
    return Together(Table(heads, rows, caption=t("deepspeed_vs_mps.caption")), *said)


def show_blocks(plain: Found, block: Found, wrapped: Found) -> go.Figure | Said:
    """What the JSON's block does to memory alone, and with the blocks wrapped."""
    rows = {}
    if "deepspeed" in block:
        rows = {
            t("deepspeed_vs_mps.without"): plain["deepspeed"]["memory"],
            t("deepspeed_vs_mps.block"): block["deepspeed"]["memory"],
            t("deepspeed_vs_mps.wrapped"): wrapped["deepspeed"]["memory"],
        }
        assert rows[t("deepspeed_vs_mps.block")] == rows[t("deepspeed_vs_mps.without")]
    rows[t("deepspeed_vs_mps.hand")] = wrapped["by_hand"]["memory"]
    way = "deepspeed" if "deepspeed" in wrapped else "by_hand"  # as the bar that it names
    saved = 100 * (1 - _activations(wrapped, way) / _activations(plain, way))
    title = t("deepspeed_vs_mps.blocks.title", saved=f"{saved:.0f}%")
    return memory_by_category_figure(rows, title=title)


def show_sharded(plain: Found, zero3: Found, offload: Found, offload_param: Found) -> go.Figure:
    """Memory of a rank without and with ZeRO-3, and with each offload, both ways.

    The last bar is what of the one above it would not be on a GPU: what the host holds.
    """
    rows, found = {}, {"without": plain, "zero3": zero3, "offload": offload}
    found["offload_param"] = offload_param
    for key, ways in found.items():
        for way in WAYS:
            if way in ways:
                label = f"{t(f'deepspeed_vs_mps.{key}')}, {t(f'deepspeed_vs_mps.{way}')}"
                rows[label] = _states(ways[way]["memory"])
    rows[t("deepspeed_vs_mps.on_host")] = offload_param["by_hand"]["on_host"]
    title = t(
        "deepspeed_vs_mps.sharded.title",
        whole=human_bytes(_on_device(plain)),
        part=human_bytes(_on_device(zero3)),
        left=human_bytes(_on_device(offload_param)),
    )
    return memory_by_category_figure(rows, title=title)


def show_opaque(seen: Mapping[str, int] | None) -> Table | Said:
    """What a loop over ``model.parameters()`` finds under DeepSpeed's ZeRO-3."""
    if seen is None:
        return Said(t("deepspeed_vs_mps.absent"))
    assert seen["seen"] == 0 and seen["without_gradient"] == seen["parameters"]
    rows = [
        [t("deepspeed_vs_mps.opaque.elements"), f"{seen['elements']:,}", f"{seen['seen']:,}"],
        [
            t("deepspeed_vs_mps.opaque.gradients"),
            f"{seen['parameters']}",
            f"{seen['parameters'] - seen['without_gradient']}",
        ],
    ]
    heads = ["", t("deepspeed_vs_mps.opaque.are"), t("deepspeed_vs_mps.opaque.seen")]
    return Table(heads, rows)


def show_scales(
    scales: Mapping[str, Sequence[float]], overflows: Sequence[bool], *, refused: str = ""
) -> Together:
    """The loss scale after each step, of three scalers that meet the same infinities.

    refused: what DeepSpeed says of float16 on this device, "" where it takes it or is not here.
    """
    signs = ["∞" if overflow else "·" for overflow in overflows]
    names = {"by_hand": t("deepspeed_vs_mps.ours"), "torch": "torch.amp.GradScaler"}
    rows = [[names.get(name, name), *map(_power, values)] for name, values in scales.items()]
    apart = largest(abs(a - b) for a, b in zip(scales["torch"], scales["by_hand"], strict=True))
    said = [Said(t("deepspeed_vs_mps.refused", message=refused))] if refused else []
    return Together(
        Table([t("deepspeed_vs_mps.scaler"), *signs], rows, caption=t("deepspeed_vs_mps.scales")),
        _held("scales", apart, allowed=0),
        *said,
    )


def show_mps(statements: Sequence[Any]) -> Table:
    """What is true of a Mac's GPU: since when, how it was found, and whether it stands here."""
    rows = []
    for each in statements:
        assert each.stands is not False, f"{each.name} does not stand with what is installed"
        how = t(f"deepspeed_vs_mps.how.{each.how}")
        checked = "\n" + t("deepspeed_vs_mps.checked") if each.stands else ""
        words = _narrow(t(f"deepspeed_vs_mps.mps.{each.name}"), 54)
        rows.append([words, each.since.replace(", ", "\n").replace(" (", "\n("), how + checked])
    heads = [t(f"deepspeed_vs_mps.mps{key}") for key in ("", ".since", ".how")]
    return Table(heads, rows)


def show_ring(
    losses: Sequence[Sequence[float]] | None, alone: Sequence[float] | None
) -> Together | Said:
    """A training over MLX's ring beside the same one in one process; None: MLX is not here."""
    if losses is None or alone is None:
        return Said(t("deepspeed_vs_mps.no_mlx"))
    rows = [
        [step, f"{one:.6f}", *(f"{of_rank[step]:.6f}" for of_rank in losses)]
        for step, one in enumerate(alone)
    ]
    heads = [t("deepspeed_vs_mps.step"), t("deepspeed_vs_mps.alone")]
    heads += [t("deepspeed_vs_mps.rank", rank=rank) for rank in range(len(losses))]
    apart = largest(abs(a - b) for each in losses for a, b in zip(each, alone, strict=True))
    return Together(Table(heads, rows), _held("ring", apart, allowed=1e-5))


def show_this_mac(found: Mapping[str, Any] | None) -> Table | Said:
    """What a Mac says of itself; None: there is none."""
    if found is None:
        return Said(t("deepspeed_vs_mps.no_mac"))
    rows = [[t(f"deepspeed_vs_mps.mac.{name}"), str(value)] for name, value in found.items()]
    return Table(["", "mps"], rows)


def show_mistakes(found: Mapping[str, Mapping[str, str]]) -> Table:
    """What each way says to the same mistake; silence is the worst answer."""
    rows = []
    for name, ways in found.items():
        row = [t(f"deepspeed_vs_mps.mistake.{name}")]
        for way in WAYS:
            silent = t("deepspeed_vs_mps.silent")
            missing = "" if way == "by_hand" else t("deepspeed_vs_mps.absent")
            said = (ways[way] or silent) if way in ways else missing
            row.append(_narrow(said, 36, lines=3))
        rows.append(row)
    return Table([t("deepspeed_vs_mps.mistake"), *(t(f"deepspeed_vs_mps.{w}") for w in WAYS)], rows)


def show_scores(numbers: Mapping[str, Sequence[str]]) -> Table:
    """E6 row by row: what was counted both ways, how, and what would change it.

    numbers: row -> what configuration and hand have; the other rows are argued in words, or are
    not to be had without DeepSpeed.
    """
    rows = []
    for name in SCORES:
        kind, cells = "measured", [*numbers.get(name, ())]
        if name in ARGUED:
            kind = "argued"
            cells = [t(f"deepspeed_vs_mps.score.{name}.{side}") for side in ("left", "right")]
        elif not cells:
            kind, cells = "absent", ["", ""]
        change = _narrow(t(f"deepspeed_vs_mps.score.{name}.change"), 26)
        row = [_narrow(t(f"deepspeed_vs_mps.score.{name}"), 15), *(_narrow(c, 22) for c in cells)]
        rows.append([*row, t(f"deepspeed_vs_mps.{kind}"), change])
    heads = [t("deepspeed_vs_mps.score"), *(t(f"deepspeed_vs_mps.{way}") for way in WAYS)]
    heads += [t("deepspeed_vs_mps.kind"), t("deepspeed_vs_mps.change")]
    return Table(heads, rows)


def score_numbers(
    found: Mapping[str, Found],
    *,
    lines: Mapping[str, Sequence[int]],
    mistakes: Mapping[str, Mapping[str, str]],
    first: Mapping[str, float],
    seen: Mapping[str, int] | None,
) -> dict[str, tuple[str, str]]:
    """What this lesson has counted for the rows of E6, in words; needs DeepSpeed for the left."""
    if seen is None or "deepspeed" not in found["all"]:
        return {}
    config, beside, hand, _ = (sum(each[i] for each in lines.values()) for i in range(4))
    told = {way: [bool(ways[way]) for ways in mistakes.values() if way in ways] for way in WAYS}
    key = "deepspeed_vs_mps.counted"
    return {
        "set_up": (t(f"{key}.json", json=config, code=beside), t(f"{key}.lines", lines=hand)),
        "efficiency": (t(f"{key}.one"), _time(found["none"]["by_hand"])),
        "memory": (_peak(found["all"]["deepspeed"]), _peak(found["all"]["by_hand"])),
        "debugging": (
            t(f"{key}.told", told=sum(told["deepspeed"]), all=len(told["deepspeed"])),
            t(f"{key}.told", told=sum(told["by_hand"]), all=len(told["by_hand"])),
        ),
        "customising": (
            t(f"{key}.seen", seen=0, all=seen["parameters"]),
            t(f"{key}.seen", seen=seen["parameters"], all=seen["parameters"]),
        ),
        "prototyping": (
            t(f"{key}.first", ratio=f"{first['deepspeed'] / first['by_hand']:.1f}"),
            t(f"{key}.one"),
        ),
    }


def figures_of_e1(found: Mapping[str, Found], derived: int) -> dict[str, float]:
    """What this lesson measured for claim E1; empty without DeepSpeed, as all of these."""
    if not derived:
        return {}
    return {"two": derived, "apart": _apart(found["accumulate"])}


def figures_of_e2(scales: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """For claim E2: the scale after two infinities, in DeepSpeed and in torch."""
    if "DeepSpeed" not in scales:
        return {}
    return {"deepspeed": scales["DeepSpeed"][1], "torch": scales["torch"][1]}


def figures_of_e3(found: Mapping[str, Found]) -> dict[str, float]:
    """For claim E3: activations saved by the block alone, and with the blocks wrapped."""
    if "deepspeed" not in found["block"]:
        return {}
    plain = _activations(found["none"], "deepspeed")
    return {
        "block": 100 * (1 - _activations(found["block"], "deepspeed") / plain),
        "wrapped": 100 * (1 - _activations(found["checkpoint"], "deepspeed") / plain),
    }


def figures_of_e4(
    found: Mapping[str, Found], seen: Mapping[str, int] | None, moved: float
) -> dict[str, float]:
    """For claim E4. moved: bytes that offload adds on a Mac."""
    if seen is None:
        return {}
    apart = largest(_apart(found[name]) for name in ("zero3", "offload", "offload_param"))
    visible = seen["parameters"] - seen["without_gradient"]
    return {
        "apart": apart,
        "seen": 100 * visible / seen["parameters"],
        "moved": found["offload"]["by_hand"]["moved"],
        "moved_param": found["offload_param"]["by_hand"]["moved"],
        "mac": moved / 1e9,
    }


def figures_of_e6(found: Mapping[str, Found], **counted: Any) -> dict[str, float]:
    """For claim E6: lines, mistakes that are told, memory with all savings."""
    if counted["seen"] is None or "deepspeed" not in found["all"]:
        return {}
    lines, mistakes = counted["lines"], counted["mistakes"]
    config, beside, hand, _ = (sum(each[i] for each in lines.values()) for i in range(4))
    told = {way: [bool(ways[way]) for ways in mistakes.values() if way in ways] for way in WAYS}
    peak = {way: sum(found["all"][way]["memory"].values()) for way in WAYS}
    return {
        "configured": config + beside,
        "hand": hand,
        "told": 100 * sum(told["deepspeed"]) / len(told["deepspeed"]),
        "told_hand": 100 * sum(told["by_hand"]) / len(told["by_hand"]),
        "memory": peak["by_hand"] / peak["deepspeed"],
    }


ARGUED = ("large", "learning", "recovery", "scaling")  # of these rows
SCORES = (
    *("set_up", "learning", "recovery", "scaling", "efficiency", "memory", "large"),
    *("debugging", "customising", "prototyping"),
)


def _narrow(text: str, columns: int, lines: int = 9) -> str:
    """The text in lines of so many columns; Korean letters are two columns wide."""
    found = [""]
    for word in text.split(" "):
        longer = f"{found[-1]} {word}".lstrip()
        if found[-1] and sum(2 if ord(char) > 0x1100 else 1 for char in longer) > columns:
            found.append(word)
        else:
            found[-1] = longer
    return "\n".join(found[:lines]) + (" …" if len(found) > lines else "")


def _states(memory: Mapping[str, float]) -> dict[str, float]:
    """Without activations, which sharding does not touch."""
    return {name: count for name, count in memory.items() if name != "activations"}


def _on_device(ways: Found) -> float:
    """Bytes by hand, activations apart, that a GPU would hold at that moment."""
    hand = ways["by_hand"]
    return sum(_states(hand["memory"]).values()) - sum(hand["on_host"].values())


def _activations(found: Found, way: str) -> float:
    return float(found[way]["memory"]["activations"])


def _cell(found: Found, way: str, cell: Callable[[Mapping[str, Any]], str]) -> str:
    return cell(found[way]) if way in found else ""


def _loss(one: Mapping[str, Any]) -> str:
    return f"{one['loss']:.4f}"


def _peak(one: Mapping[str, Any]) -> str:
    return human_bytes(sum(one["memory"].values()))


def _sent(one: Mapping[str, Any]) -> str:
    return "" if one["sent"] is None else human_bytes(one["sent"])


def _time(one: Mapping[str, Any]) -> str:
    return f"{one['ratio']:.2f} ×" if "ratio" in one else ""


def _lines_cell(lines: Sequence[int] | None) -> str:
    if lines is None:
        return ""
    config, beside, hand, behind = lines
    left = f"{config} + {beside}" if beside else f"{config}"
    return f"{left} | {hand} ({behind})"


def _apart(ways: Found) -> float:
    if not set(WAYS) <= set(ways):
        return 0.0
    return abs(ways["deepspeed"]["loss"] - ways["by_hand"]["loss"])


def _power(scale: float) -> str:
    return f"2^{scale.hex().partition('p')[2].lstrip('+')}"


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    what = t(f"deepspeed_vs_mps.held.{name}")
    because = t(f"deepspeed_vs_mps.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
