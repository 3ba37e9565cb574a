"""The live panel: what each rank is doing, drawn in the notebook at most ten times a second.

`Panel` is a plain object. Only `display()` in front of a person makes a widget (and only then are
anywidget and ipywidgets imported); everywhere else every method does nothing and keeps nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from dlcourse.figures.colors import CATEGORIES, STATES, rank_color, text_on
from dlcourse.panel.message import message
from dlcourse.panel.summary import Summary
from dlcourse.ranks.notebook.front_end import front_end_present
from dlcourse.words.strings import language, t

__all__ = ["Panel", "view_beside", "widgets_installed"]

INTERVAL_S = 0.1  # between two messages to the browser
VIEW = "application/vnd.jupyter.widget-view+json"


def widgets_installed() -> bool:
    """Whether this kernel can make widgets: a notebook may be in front of one that cannot."""
    return all(find_spec(name) is not None for name in ("ipywidgets", "anywidget"))


def view_beside(widget: Any, still: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A MIME bundle with a widget and what stands still in its place, and the bundle's metadata.

    Colab needs the metadata to draw an anywidget: it adds them itself to what is displayed, and
    not to the value of a cell (google/colab/output/_widgets.py, googlecolab/colabtools 24e3a7a).
    """
    data, metadata = widget._repr_mimebundle_()
    return {**data, **still}, metadata


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
        self.machines: Sequence[str] = ()  # of each rank, where there are several
        self._widget: Any = None
        self._lock = threading.Lock()
        self._pending = False
        self._timer: threading.Timer | None = None
        self._sent_at = 0.0
        self._summary = Summary()

    @property
    def shown(self) -> bool:
        """Whether there is a widget to update."""
        return self._widget is not None

    def display(self) -> None:
        """Show the panel below the running cell, if somebody is there to see it."""
        if not (front_end_present() and widgets_installed()):
            return
        from IPython.display import display

        if self._widget is None:
            look = _LOOK | {"size": self.size}
            now = message(self._summary, self.lang, self.machines)
            self._widget = _widget_class()(words=_words(self.lang, self.size), look=look, now=now)
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
            self._widget.now = message(self._summary, self.lang, self.machines)
        self._pending = False


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
