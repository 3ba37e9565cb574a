"""The small messages that the browser draws: what a `Summary` knows, in words."""

from __future__ import annotations

from collections.abc import Sequence

from dlcourse.measure.categories import CATEGORIES
from dlcourse.panel.summary import Summary
from dlcourse.words.strings import t
from dlcourse.words.units import human_count, human_seconds, rank_ranges

SHOWN_RANKS = 16  # more would not fit a screen, nor the 4 KB of one message
ALERT_AFTER_S = 2.0  # a collective that takes longer than this deserves a sentence

_AWAY = ("dead", "lost")
Waits = dict[int, tuple[str, float] | None]  # rank -> the collective it is in, seconds


def message(summary: Summary, lang: str, machines: Sequence[str] = ()) -> dict:
    """What the browser is to draw now; below 4 KB.

    machines: for each rank the name of its machine, where there are several.
    """
    ranks = [summary.known[number] for number in sorted(summary.known)]
    waits = {r["rank"]: summary.waited(r) for r in ranks}
    # A pool of hundreds still shows each rank that stands out.
    shown = [r for r in ranks if r.get("state") in _AWAY][:SHOWN_RANKS]
    shown += [r for r in ranks if r not in shown][: SHOWN_RANKS - len(shown)]
    more = len(ranks) - len(shown)
    return {
        "cell": summary.cell or 0,
        "kept": summary.measured.get("cell") or 0,
        "where": t("panel.cell", lang, number=summary.label) if summary.label else "",
        "busy": summary.busy,
        "t": round(summary.elapsed, 2),
        "status": _status(summary, lang),
        "alert": _alert(ranks, waits, lang),
        "say": _spoken(summary, ranks, waits, lang),
        "facts": _facts(summary, ranks, lang),
        "comm": _comm(ranks),
        "more": t("panel.more", lang, count=more) if more else "",
        "ranks": [
            _row(r, summary.peak(r), waits[r["rank"]], lang) | _place(r["rank"], machines)
            for r in sorted(shown, key=lambda r: r["rank"])
        ],
    }


def _status(summary: Summary, lang: str) -> str:
    if not summary.busy and not summary.elapsed:
        states = {rank.get("state") for rank in summary.known.values()}
        ready = "stopped" if states & {"stopped", *_AWAY} else "idle"
        return t(f"panel.status.{ready}", lang)
    # One decimal while it counts up: a text that changes its length flickers.
    time = f"{summary.elapsed:.1f} s" if summary.busy else human_seconds(summary.elapsed)
    return t(f"panel.status.{'busy' if summary.busy else summary.outcome}", lang, time=time)


def _alert(ranks: list[dict], waits: Waits, lang: str) -> str:
    """One sentence when something is wrong or takes long, else nothing."""
    for state in _AWAY:
        gone = [r["rank"] for r in ranks if r.get("state") == state]
        if gone:
            return t(f"panel.alert.{state}", lang, ranks=rank_ranges(gone))
    late = {n: w for n, w in waits.items() if w and w[1] >= ALERT_AFTER_S}
    if not late:
        return ""
    longest = _clock(max(w[1] for w in late.values()))
    absent = [r["rank"] for r in ranks if r["rank"] not in late]
    where = sorted({w[0] for w in late.values()})
    if absent:
        return t(
            "panel.alert.absent",
            lang,
            waiting=rank_ranges(list(late)),
            op=", ".join(where[:3]),
            time=longest,
            absent=rank_ranges(absent),
        )
    return t("panel.alert.all_wait", lang, time=longest, ops=", ".join(where[:3]))


def _spoken(summary: Summary, ranks: list[dict], waits: Waits, lang: str) -> str:
    """What a screen reader says: only what has happened, not how long ago, and so once."""
    late = [n for n, w in waits.items() if w and w[1] >= ALERT_AFTER_S]
    if any(r.get("state") in _AWAY for r in ranks):
        return _alert(ranks, waits, lang)
    if late:
        absent = [r["rank"] for r in ranks if r["rank"] not in late]
        key, told = ("absent", absent) if absent else ("all_wait", late)
        return t(f"panel.say.{key}", lang, ranks=rank_ranges(told))
    wrong = not summary.busy and summary.elapsed and summary.outcome != "done"
    return t(f"panel.say.{summary.outcome}", lang) if wrong else ""


def _facts(summary: Summary, ranks: list[dict], lang: str) -> list[list[str]]:
    """[field, label, text] of throughput, steps and loss, as far as a rank reported them."""
    facts = []
    rate = summary.tokens_per_s()
    if rate is not None:
        facts.append(["rate", t("panel.rate", lang), human_count(round(rate))])
    steps = max((r.get("steps") or 0 for r in ranks), default=0)
    if steps:
        facts.append(["steps", t("panel.steps", lang), f"{steps:,}"])
    losses = [r["loss"] for r in ranks if r.get("loss") is not None]
    if losses:
        facts.append(["loss", t("panel.loss", lang), f"{sum(losses) / len(losses):.4g}"])
    return facts


def _comm(ranks: list[dict]) -> list[list]:
    """[collective, bytes, calls] of the rank that moved most, most bytes first."""
    most: dict[str, tuple[int, int]] = {}
    for rank in ranks:
        calls = rank.get("comm_calls") or {}
        for op, count in (rank.get("comm_bytes") or {}).items():
            most[op] = max(most.get(op, (0, 0)), (count, calls.get(op, 0)))
    rows = sorted(most.items(), key=lambda item: (-item[1][0], item[0]))
    return [[op, *pair] for op, pair in rows[:8]]


def _place(rank: int, machines: Sequence[str]) -> dict[str, str]:
    return {"at": machines[rank]} if machines else {}


def _row(rank: dict, peak: int, waited: tuple[str, float] | None, lang: str) -> dict:
    number, state = rank["rank"], rank.get("state", "idle")
    memory = [int((rank.get("memory") or {}).get(name, 0)) for name in CATEGORIES]
    if waited:
        # Below a tenth of a second the clock would only flicker.
        time = _clock(waited[1]) if waited[1] >= 0.1 else ""
        text = t("panel.waiting", lang, op=waited[0], time=time).rstrip()
    else:
        text = t(f"panel.state.{state}", lang)
    moved = sum((rank.get("comm_bytes") or {}).values())
    return {
        "r": number,
        "s": state,
        "text": text,
        "m": memory,
        "peak": peak,
        "pss": rank.get("pss_bytes") or 0,
        "b": moved,
    }


def _clock(seconds: float) -> str:
    """A running clock: no more digits than can be read while it runs."""
    return human_seconds(seconds) if seconds < 1 else f"{seconds:.1f} s"
