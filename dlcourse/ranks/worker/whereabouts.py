"""What a rank tells the notebook of itself: where it stands, and which calls it has made."""

from __future__ import annotations

import linecache
import threading
import time
from typing import Any

from dlcourse.measure import own_calls
from dlcourse.ranks.worker.call_stack import stack_of
from dlcourse.ranks.worker.flight_recorder import FlightRecorder
from dlcourse.ranks.worker.waits import Waits


class Whereabouts:
    """Where the thread that makes this object stands, asked from another thread."""

    def __init__(self, collectives: FlightRecorder, waits: Waits) -> None:
        self._thread = threading.get_ident()
        self.collectives, self.waits = collectives, waits

    def forget(self) -> None:
        """Start anew, with a new process group."""
        self.collectives.forget()
        self.waits.forget()
        own_calls.forget()

    def now(self) -> dict[str, Any]:
        """Where the main thread stands: line of the cell, collective, what it started last."""
        stack, collective = stack_of(self._thread)
        cell = next((at for at in stack if at[0].startswith("<ranks cell") and at[1]), None)
        line = cell and {
            "line": cell[1],
            "code": linecache.getline(*cell).strip(),
            "file": cell[0],
        }
        calls = self.calls()
        wait, own = self.waits.now, own_calls.waiting()
        if own is not None:
            wait = {"id": (own.group, own.seq), "limited": False}
        # Another thread may make the call that this one waits for.
        others = len(threading.enumerate()) - 2
        return {
            "time_s": time.monotonic(),
            "cpu_s": time.process_time(),
            "line": line,
            "call": collective,
            "wait": wait and {**wait, "group": self.collectives.name(wait.get("group", ""))},
            "certain": self.collectives.complete and others <= 0,
            **calls,
        }

    def calls(self) -> dict[str, Any]:
        """What this rank has called in each group, for the notebook to compare with the others."""
        posted, lost = dict(self.waits.posted), self.waits.lost()
        return {
            "collectives": self.collectives.last() | self._own_calls(),
            "members": self.collectives.members()
            | {self._own_name(group): list(r) for group, r in [*own_calls.members.items()]},
            "messages": {
                (direction, self.collectives.name(group), peer, tag): (
                    None if lost is None or (direction, group, peer, tag) in lost else count
                )
                for (direction, group, peer, tag), count in posted.items()
            },
            "blind": lost is None,
        }

    def _own_name(self, group: str) -> str:
        return f"{self.collectives.name(group)}, one-sided"

    def _own_calls(self) -> dict[str, list[dict[str, Any]]]:
        """Collectives that torch does not see, as the flight recorder tells of its own."""
        none = {"seq": 0, "op": "", "shapes": [], "dtypes": [], "done": True}
        return {
            self._own_name(group): [
                {
                    "seq": call.seq,
                    "op": call.op,
                    "shapes": [list(call.shape)],
                    "dtypes": [str(call.dtype).removeprefix("torch.")],
                    "done": call.done,
                }
                for call in [*calls]
            ]
            or [none]
            for group, calls in [*own_calls.calls.items()]
        }
