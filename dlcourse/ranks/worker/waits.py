"""What a rank waits for, and which messages it has sent and received.

Torch's flight recorder (`flight_recorder.py`) knows the collectives. On Gloo it does not know
point-to-point calls, and it cannot tell a rank that waits from one that computes while a
collective is under way. So `Waits` counts sends and receives where they are posted, and notes
which call of `Work.wait` the main thread is in.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from typing import Any

from torch.distributed import ProcessGroup, Work

from dlcourse.ranks.diagnosis.state import ANY, MessageKey


class Waits:
    """Watches `Work.wait` and the point-to-point calls of this process.

    Attributes:
        now: the wait that the watched thread is in, or None: {"id": its number, "limited": whether
            it ends by itself after a time of the caller's}; for a message also {"direction": "send"
            or "recv", "group", "peer" and "tag" as in torch's call, "count": its number of these}.
        posted: (direction, group, peer, tag) -> calls so far; "ended" and "taken" are the receives
            that have ended, from a peer that was named and from one that came first.
    """

    def __init__(self) -> None:
        self.now: dict[str, Any] | None = None
        self.posted: dict[MessageKey, int] = {}
        self._thread = threading.get_ident()
        self._numbers = itertools.count()
        self._messages: dict[int, tuple[weakref.ref[Work], dict[str, Any]]] = {}
        self._lost: set[MessageKey] = set()
        self._blind = False
        self.begin()

    def begin(self) -> None:
        """A cell begins: what was posted before it is not its own."""
        self._before, self._dropped = set(self._messages), False

    def leaves_any(self) -> bool:
        """Whether a message that this cell has posted has not ended: the next may take it."""
        return self._dropped or not self._messages.keys() <= self._before

    def forget(self) -> None:
        """Start anew, with a new process group."""
        self.posted, self._messages, self._lost, self._blind = {}, {}, set(), False
        self.begin()

    def install(self) -> None:
        """Watch from now on, for as long as the process lives."""
        Work.wait = self._watched(Work.wait)  # type: ignore[method-assign]
        for name, direction in (("send", "send"), ("recv", "recv"), ("recv_anysource", "recv")):
            call = getattr(ProcessGroup, name)
            setattr(ProcessGroup, name, self._counted(call, direction, named=name == direction))

    def lost(self) -> set[MessageKey] | None:
        """Keys of `posted` whose count proves nothing: a message whose work was dropped before its
        end may or may not have been delivered. None: no count does."""
        return None if self._blind else set(self._lost)

    def _watched(self, wait: Any) -> Any:
        def watched(work: Work, *args: Any, **kwargs: Any) -> Any:
            _, message = self._messages.get(id(work), (None, {}))
            mine = threading.get_ident() == self._thread
            outer = self.now
            if mine:
                limited = bool(args or kwargs)
                self.now = {"id": next(self._numbers), "limited": limited, **message}
            try:
                result = wait(work, *args, **kwargs)
                self._messages.pop(id(work), None)
                if message.get("direction") == "recv":
                    self._received(work, message)
                return result
            finally:
                if mine:
                    self.now = outer
                _take_signals()  # here, and not in the first `finally` that the error meets

        return watched

    def _counted(self, call: Any, direction: str, *, named: bool) -> Any:
        def counted(group: ProcessGroup, tensors: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return count_one(group, tensors, *args, **kwargs)
            except KeyboardInterrupt:  # after the call, perhaps before it was counted
                self._dropped = True
                raise

        def count_one(group: ProcessGroup, tensors: Any, *args: Any, **kwargs: Any) -> Any:
            work = call(group, tensors, *args, **kwargs)
            if kwargs or len(args) != 1 + named:  # not as torch's own functions call it
                self._blind = True
                return work
            peer, tag = args if named else (ANY, *args)
            key = (direction, group.group_name, peer, tag)
            self.posted[key] = count = self.posted.get(key, 0) + 1
            if isinstance(work, Work):
                number = id(work)
                message = dict(
                    zip(("direction", "group", "peer", "tag"), key, strict=True), count=count
                )
                self._messages[number] = (weakref.ref(work, lambda _: self._drop(number)), message)
            return work

        return counted

    def _received(self, work: Work, message: dict[str, Any]) -> None:
        """Count a receive that has ended; one from anybody by who it was."""
        direction, peer = "ended", message["peer"]
        if peer == ANY:
            direction, peer = "taken", work._source_rank()
        key = (direction, message["group"], peer, message["tag"])
        self.posted[key] = self.posted.get(key, 0) + 1

    def _drop(self, number: int) -> None:
        """A work is gone that nobody has waited for."""
        message = self._messages.pop(number, (None, None))[1]
        if message is not None:
            self._dropped = True
            self._lost.add(
                (message["direction"], message["group"], message["peer"], message["tag"])
            )


def _take_signals() -> None:
    """A call: Python handles at its start what has come while C++ waited."""
