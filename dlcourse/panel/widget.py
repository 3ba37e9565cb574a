"""The live panel: what each rank is doing, drawn in the notebook at most ten times a second.

`Panel` is a plain object. Only `display()` in front of a person makes a widget (and only then are
anywidget and ipywidgets imported); everywhere else every method does nothing and keeps nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from copy import copy
from functools import cache
from importlib.resources import files
from typing import Any

from dlcourse.figures.colors import CATEGORIES, STATES, rank_color, text_on
from dlcourse.ranks.notebook.front_end import front_end_present
from dlcourse.words.strings import language, t
from dlcourse.words.units import human_count, human_seconds, rank_ranges

INTERVAL_S = 0.1  # between two messages to the browser
SHOWN_RANKS = 16  # more would not fit a screen, nor the 4 KB of one message
ALERT_AFTER_S = 2.0  # a collective that takes longer than this deserves a sentence
RATE_WINDOW_S = 3.0  # tokens per second are counted over the last seconds

NOTHING_BYTES = 1024  # a cell whose ranks hold no more than this anew has measured nothing

_AWAY = ("dead", "lost")
_CELL = ("cell", "label", "elapsed", "known", "peaks", "tokens_at", "outcome")  # kept of a cell


@cache
def _widget_class() -> type:
    """The anywidget class, made at the first display: importing it costs 0.1 s and 20 MB."""
    import anywidget
    import traitlets

    here = files("dlcourse.panel")

    class DlcoursePanel(anywidget.AnyWidget):
        _esm = (here / "panel.js").read_text("utf-8")
        _css = (here / "panel.css").read_text("utf-8")
        words = traitlets.Dict().tag(sync=True)
        look = traitlets.Dict().tag(sync=True)
        now = traitlets.Dict().tag(sync=True)

        def __repr__(self) -> str:
            # Jupyter keeps it for where the panel is not drawn: without its kernel, or trust.
            return self.words["plain"]

    return DlcoursePanel


class Panel:
    """The panel of one pool of `size` ranks, in `lang` ("ko", "en"; None is the one in use)."""

    def __init__(self, size: int, lang: str | None = None) -> None:
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"size={size!r}: a panel shows a whole number of ranks, at least 1.")
        self.size = size
        self.lang = lang or language()
        t("panel.title", self.lang, size=size)  # refuses an unknown language here, not later
        self.next_label: int | None = None  # the number beside the notebook's cell that runs next
        self._widget: Any = None
        self._lock = threading.Lock()
        self._pending = False
        self._timer: threading.Timer | None = None
        self._sent_at = 0.0
        self._summary = _Summary(size, self.lang)

    @property
    def shown(self) -> bool:
        """Whether there is a widget to update."""
        return self._widget is not None

    def display(self) -> None:
        """Show the panel below the running cell, if somebody is there to see it."""
        if not front_end_present():
            return
        from IPython.display import display

        if self._widget is None:
            look = _LOOK | {"size": self.size}
            self._widget = _widget_class()(
                words=_words(self.lang, self.size), look=look, now=self._summary.message()
            )
        display(self._widget)

    def update(self, state: dict) -> None:
        """Show `state`; thread-safe, returns at once.

        state: {"cell": int, "busy": bool, "elapsed_s": float,
            "outcome": "done"|"failed"|"interrupted", "ranks": [{"rank": int,
            "state": "idle"|"running"|"waiting"|"dead"|"lost"|"stopped",
            "collective": {"op", "seq", "since_ns"}|"all_reduce #3"|None, and what a recorder's
            `sample()` gives: "memory", "comm_bytes", "comm_calls", "pss_bytes", "tokens",
            "steps", "loss"}, ...]}
            What a state or a rank leaves out stays as it was in the same cell; a new cell starts
            at zero. A cell that ends well and has measured nothing gives way to the last one that
            has, so that the end of "Run all" is not an empty panel.

        A state that comes less than 0.1 s after the last one waits, and only the newest waiting
        one is drawn. A state with `busy` false is the end of a cell and is drawn right away.
        """
        if self._widget is None:
            return
        with self._lock:
            self._summary.note(state, self.next_label)
            self._pending = True
            wait = self._sent_at + INTERVAL_S - time.monotonic()
            if wait <= 0 or not state.get("busy"):
                self._send()
            elif self._timer is None:
                self._timer = threading.Timer(wait, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Draw the newest state now, if one is waiting."""
        with self._lock:
            self._send()

    def close(self) -> None:
        """Take the widget away from the page; the object can be displayed again."""
        with self._lock:
            self._pending = False
            self._send()
            if self._widget is not None:
                self._widget.close()
                self._widget = None

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pending and self._widget is not None:
            self._sent_at = time.monotonic()
            self._widget.now = self._summary.message()
        self._pending = False


def last_state(cell: int, elapsed_s: float, records: Iterable[Mapping[str, Any]]) -> dict:
    """The state at the end of a cell, from what its ranks recorded.

    A short cell is over before the first sample; its records still tell its bytes and peaks.
    """
    ranks = []
    for record in records:
        moved: dict[str, int] = {}
        calls: dict[str, int] = {}
        for call in record["comm"]:
            moved[call["op"]] = moved.get(call["op"], 0) + call["bytes"]
            calls[call["op"]] = calls.get(call["op"], 0) + 1
        steps = record["steps"]
        ranks.append(
            {
                "rank": record["rank"],
                "state": "idle",
                "collective": None,
                "memory": record["memory"]["end"],
                "peak_bytes": record["memory"]["peak_bytes"],
                "pss_bytes": record.get("pss_bytes"),
                "comm_bytes": moved,
                "comm_calls": calls,
                "tokens": sum(step["tokens"] or 0 for step in steps),
                "steps": len(steps),
                "loss": steps[-1]["loss"] if steps else None,
            }
        )
    return {"cell": cell, "busy": False, "elapsed_s": elapsed_s, "ranks": ranks}


class _Summary:
    """Turns states of the pool into the small messages that the browser draws.

    It remembers what one state alone does not tell: peaks, how long a rank has waited, and
    how many tokens went by in the last seconds.
    """

    def __init__(self, size: int, lang: str) -> None:
        self.size, self.lang = size, lang
        self.held: dict[int, int] = {}  # bytes of tensors in each rank when the last cell ended
        self.measured: dict[str, Any] = {}  # the last cell that measured something, as it ended
        self._new_cell(None)

    def _new_cell(self, cell: int | None, label: int | None = None) -> None:
        self.cell = cell
        self.busy, self.elapsed, self.outcome = False, 0.0, "done"
        self.label = label
        self.known: dict[int, dict] = {}
        self.peaks: dict[int, int] = {}
        self.waiting_since: dict[int, tuple[str, float]] = {}
        self.tokens_at: deque[tuple[float, int]] = deque([(0.0, 0)])

    def note(self, state: dict, label: int | None = None) -> None:
        """Take in a state, whether or not it will be drawn; `label` is a new cell's."""
        ended = self.busy or state.get("cell", self.cell) != self.cell
        if state.get("cell", self.cell) != self.cell:
            self._new_cell(state["cell"], label)
            if not self.cell:  # new ranks: nothing is left of what the old ones held
                self.held, self.measured = {}, {}
        self.busy = bool(state.get("busy"))
        self.elapsed = float(state.get("elapsed_s") or self.elapsed)
        self.outcome = state.get("outcome") or self.outcome
        # A rank that says nothing new about itself still has what it had.
        for rank in state.get("ranks") or []:
            self.known[rank["rank"]] = {**self.known.get(rank["rank"], {}), **rank}
        if ended and not self.busy and self.elapsed:
            self._end_cell()

    def _end_cell(self) -> None:
        """Keep a cell that measured something; go back to the kept one after one that did not."""
        now = self.known
        measured = self._has_measured()
        self.held |= {number: _bytes(rank) for number, rank in now.items() if "memory" in rank}
        if measured and self.outcome != "failed":
            self.measured = {name: copy(getattr(self, name)) for name in _CELL}
        elif not measured and self.outcome == "done" and self.measured:
            vars(self).update({name: copy(value) for name, value in self.measured.items()})
            for number, rank in self.known.items():
                state = now.get(number, {}).get("state", "idle")
                self.known[number] = {**rank, "state": state, "collective": None}

    def _has_measured(self) -> bool:
        """Whether the cell communicated, marked steps, or changed what its ranks hold."""
        for number, rank in self.known.items():
            if rank.get("comm_calls") or rank.get("comm_bytes") or rank.get("steps"):
                return True
            if "memory" not in rank:
                continue
            before, after = self.held.get(number, 0), _bytes(rank)
            peak = max(self.peaks.get(number, 0), rank.get("peak_bytes") or 0, after)
            if max(peak - before, before - after) > NOTHING_BYTES:
                return True
        return False

    def message(self) -> dict:
        """What the browser is to draw now; below 4 KB."""
        busy, elapsed = self.busy, self.elapsed
        ranks = [self.known[number] for number in sorted(self.known)]
        waits = {r["rank"]: self._waited(r) for r in ranks}
        # A pool of hundreds still shows each rank that stands out.
        shown = [r for r in ranks if r.get("state") in _AWAY][:SHOWN_RANKS]
        shown += [r for r in ranks if r not in shown][: SHOWN_RANKS - len(shown)]
        more = len(ranks) - len(shown)
        return {
            "cell": self.cell or 0,
            "kept": self.measured.get("cell") or 0,
            "where": t("panel.cell", self.lang, number=self.label) if self.label else "",
            "busy": busy,
            "t": round(elapsed, 2),
            "status": self._status(busy, elapsed),
            "alert": self._alert(ranks, waits),
            "say": self._spoken(ranks, waits),
            "facts": self._facts(ranks, busy, elapsed),
            "comm": self._comm(ranks),
            "more": t("panel.more", self.lang, count=more) if more else "",
            "ranks": [
                self._row(r, waits[r["rank"]]) for r in sorted(shown, key=lambda r: r["rank"])
            ],
        }

    def _status(self, busy: bool, elapsed: float) -> str:
        if not busy and not elapsed:
            states = {rank.get("state") for rank in self.known.values()}
            ready = "stopped" if states & {"stopped", *_AWAY} else "idle"
            return t(f"panel.status.{ready}", self.lang)
        # One decimal while it counts up: a text that changes its length flickers.
        time_ = f"{elapsed:.1f} s" if busy else human_seconds(elapsed)
        return t(f"panel.status.{'busy' if busy else self.outcome}", self.lang, time=time_)

    def _waited(self, rank: dict) -> tuple[str, float] | None:
        """The collective that the rank is in and the seconds it has been there."""
        where, number = rank.get("collective"), rank["rank"]
        if not where or rank.get("state") != "waiting":
            self.waiting_since.pop(number, None)
            return None
        now, began = time.monotonic(), None
        if isinstance(where, dict):
            began = where.get("since_ns")
            began = began / 1e9 if began is not None else None
            where = f"{where['op']} #{where['seq']}"
        if began is None or not 0 <= now - began < 86_400:  # another machine, another clock
            known = self.waiting_since.get(number)
            began = known[1] if known and known[0] == where else now
        self.waiting_since[number] = (where, began)
        return where, now - began

    def _alert(self, ranks: list[dict], waits: dict[int, tuple[str, float] | None]) -> str:
        """One sentence when something is wrong or takes long, else nothing."""
        for state in _AWAY:
            gone = [r["rank"] for r in ranks if r.get("state") == state]
            if gone:
                return t(f"panel.alert.{state}", self.lang, ranks=rank_ranges(gone))
        late = {n: w for n, w in waits.items() if w and w[1] >= ALERT_AFTER_S}
        if not late:
            return ""
        longest = _clock(max(w[1] for w in late.values()))
        absent = [r["rank"] for r in ranks if r["rank"] not in late]
        where = sorted({w[0] for w in late.values()})
        if absent:
            return t(
                "panel.alert.absent",
                self.lang,
                waiting=rank_ranges(list(late)),
                op=", ".join(where[:3]),
                time=longest,
                absent=rank_ranges(absent),
            )
        return t("panel.alert.all_wait", self.lang, time=longest, ops=", ".join(where[:3]))

    def _spoken(self, ranks: list[dict], waits: dict[int, tuple[str, float] | None]) -> str:
        """What a screen reader says: only what has happened, not how long ago, and so once."""
        late = [n for n, w in waits.items() if w and w[1] >= ALERT_AFTER_S]
        if any(r.get("state") in _AWAY for r in ranks):
            return self._alert(ranks, waits)
        if late:
            absent = [r["rank"] for r in ranks if r["rank"] not in late]
            key, told = ("absent", absent) if absent else ("all_wait", late)
            return t(f"panel.say.{key}", self.lang, ranks=rank_ranges(told))
        wrong = not self.busy and self.elapsed and self.outcome != "done"
        return t(f"panel.say.{self.outcome}", self.lang) if wrong else ""

    def _facts(self, ranks: list[dict], busy: bool, elapsed: float) -> list[list[str]]:
        """[field, label, text] of throughput, steps and loss, as far as a rank reported them."""
        facts = []
        tokens = sum(r.get("tokens") or 0 for r in ranks)
        if tokens:
            while len(self.tokens_at) > 1 and self.tokens_at[1][0] <= elapsed - RATE_WINDOW_S:
                self.tokens_at.popleft()
            began, before = self.tokens_at[0] if busy else (0.0, 0)
            if elapsed > self.tokens_at[-1][0]:
                self.tokens_at.append((elapsed, tokens))
            if elapsed > began:
                rate = (tokens - before) / (elapsed - began)
                facts.append(["rate", t("panel.rate", self.lang), human_count(round(rate))])
        steps = max((r.get("steps") or 0 for r in ranks), default=0)
        if steps:
            facts.append(["steps", t("panel.steps", self.lang), f"{steps:,}"])
        losses = [r["loss"] for r in ranks if r.get("loss") is not None]
        if losses:
            facts.append(["loss", t("panel.loss", self.lang), f"{sum(losses) / len(losses):.4g}"])
        return facts

    def _comm(self, ranks: list[dict]) -> list[list]:
        """[collective, bytes, calls] of the rank that moved most, most bytes first."""
        most: dict[str, tuple[int, int]] = {}
        for rank in ranks:
            calls = rank.get("comm_calls") or {}
            for op, count in (rank.get("comm_bytes") or {}).items():
                most[op] = max(most.get(op, (0, 0)), (count, calls.get(op, 0)))
        rows = sorted(most.items(), key=lambda item: (-item[1][0], item[0]))
        return [[op, *pair] for op, pair in rows[:8]]

    def _row(self, rank: dict, waited: tuple[str, float] | None) -> dict:
        number, state = rank["rank"], rank.get("state", "idle")
        memory = [int((rank.get("memory") or {}).get(name, 0)) for name in CATEGORIES]
        peak = max(self.peaks.get(number, 0), sum(memory), rank.get("peak_bytes") or 0)
        self.peaks[number] = peak
        if waited:
            # Below a tenth of a second the clock would only flicker.
            time_ = _clock(waited[1]) if waited[1] >= 0.1 else ""
            text = t("panel.waiting", self.lang, op=waited[0], time=time_).rstrip()
        else:
            text = t(f"panel.state.{state}", self.lang)
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


def _bytes(rank: Mapping[str, Any]) -> int:
    return sum(int((rank.get("memory") or {}).get(name, 0)) for name in CATEGORIES)


def _clock(seconds: float) -> str:
    """A running clock: no more digits than can be read while it runs."""
    return human_seconds(seconds) if seconds < 1 else f"{seconds:.1f} s"


def _words(lang: str, size: int) -> dict[str, str]:
    fixed = "bytes bytes.help close collapse comm comm.none memory memory.help timeline"
    fixed += " timeline.help state.dead state.idle state.lost state.running"
    fixed += " state.stopped state.waiting"
    words = {name: t(f"panel.{name}", lang) for name in fixed.split()}
    words |= {f"category.{name}": t(f"category.{name}", lang) for name in CATEGORIES}
    # The browser writes a number into these.
    words["peak"] = t("panel.peak", lang, bytes="{}")
    words["process"] = t("panel.process", lang, bytes="{}")
    words["rank"] = t("panel.rank", lang, rank="{}")
    words["plain"] = t("panel.plain", lang, size=size)
    words["title"] = t("panel.title", lang, size="{}")
    words["label"] = t("panel.label", lang, size="{}")
    return words


_LOOK = {
    "categories": [[name, color, text_on(color)] for name, color in CATEGORIES.items()],
    "states": STATES | {"stopped": STATES["idle"]},
    "ranks": [rank_color(rank) for rank in range(8)],
}
