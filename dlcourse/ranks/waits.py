"""What a rank has called and what it waits for: the one place that looks into process groups.

Collectives come from torch's flight recorder, which is private to torch. On Gloo it does not know
point-to-point calls, and it cannot tell a rank that waits from one that computes while a
collective is under way. So `Waits` counts sends and receives where they are posted, and notes
which call of `Work.wait` the main thread is in.
"""

from __future__ import annotations

import itertools
import json
import threading
import weakref
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup, Work

from dlcourse.ranks.host import FLIGHT_RECORDER_SIZE

KEPT = 8  # collectives of each group that are told to the notebook
ANY = -1  # the peer of a receive that takes what comes first


class Waits:
    """Watches `Work.wait` and the point-to-point calls of this process.

    Attributes:
        now: the wait that the watched thread is in, or None: {"id": its number, "limited": whether
            it ends by itself after a time of the caller's}; for a message also {"way": "send" or
            "recv", "group", "peer" and "tag" as in torch's call, "count": its number of these}.
        posted: (way, group, peer, tag) -> calls so far; "ended" and "taken" are the receives that
            have ended, from a peer that was named and from one that came first.
    """

    def __init__(self) -> None:
        self.now: dict[str, Any] | None = None
        self.posted: dict[tuple[str, str, int, int], int] = {}
        self._thread = threading.get_ident()
        self._numbers = itertools.count()
        self._messages: dict[int, tuple[weakref.ref[Work], dict[str, Any]]] = {}
        self._lost: set[tuple[str, str, int, int]] = set()
        self._blind = False

    def forget(self) -> None:
        """Start anew, with a new process group."""
        self.posted, self._messages, self._lost, self._blind = {}, {}, set(), False

    def install(self) -> None:
        """Watch from now on, for as long as the process lives."""
        Work.wait = self._watched(Work.wait)
        ProcessGroup.send = self._counted(ProcessGroup.send, "send", named=True)
        ProcessGroup.recv = self._counted(ProcessGroup.recv, "recv", named=True)
        ProcessGroup.recv_anysource = self._counted(
            ProcessGroup.recv_anysource, "recv", named=False
        )

    def lost(self) -> set[tuple[str, str, int, int]] | None:
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
                if message.get("way") == "recv":
                    self._received(work, message)
                return result
            finally:
                if mine:
                    self.now = outer

        return watched

    def _counted(self, call: Any, way: str, *, named: bool) -> Any:
        def counted(group: ProcessGroup, tensors: Any, *args: Any, **kwargs: Any) -> Any:
            work = call(group, tensors, *args, **kwargs)
            if kwargs or len(args) != 1 + named:  # not as torch's own functions call it
                self._blind = True
                return work
            peer, tag = args if named else (ANY, *args)
            key = (way, group.group_name, peer, tag)
            self.posted[key] = count = self.posted.get(key, 0) + 1
            if isinstance(work, Work):
                number = id(work)
                message = dict(zip(("way", "group", "peer", "tag"), key, strict=True), count=count)
                self._messages[number] = (weakref.ref(work, lambda _: self._drop(number)), message)
            return work

        return counted

    def _received(self, work: Work, message: dict[str, Any]) -> None:
        """Count a receive that has ended; one from anybody by who it was."""
        way, peer = "ended", message["peer"]
        if peer == ANY:
            way, peer = "taken", work._source_rank()
        key = (way, message["group"], peer, message["tag"])
        self.posted[key] = self.posted.get(key, 0) + 1

    def _drop(self, number: int) -> None:
        """A work is gone that nobody has waited for."""
        message = self._messages.pop(number, (None, None))[1]
        if message is not None:
            self._lost.add((message["way"], message["group"], message["peer"], message["tag"]))


class History:
    """The last collectives of each process group, from torch's flight recorder."""

    def __init__(self) -> None:
        self.world = "0"  # torch's name of the group of all ranks
        self._forgotten = -1  # entries up to this one belong to a group that is gone
        # name -> groups that have had it, one after the other: a rank may still be in the first
        # while another is in the second.
        self._made: dict[str, list[int]] = {}
        self.complete = True  # whether the last answer knew every collective under way

    def _entries(self) -> list[dict[str, Any]]:
        from torch._C._distributed_c10d import _dump_fr_trace_json

        try:
            return json.loads(_dump_fr_trace_json(True, False)).get("entries", [])
        except (RuntimeError, ValueError):
            return []

    def forget(self) -> None:
        """Start anew, with a new process group."""
        self._forgotten = max((e["record_id"] for e in self._entries()), default=self._forgotten)

    def name(self, group: str) -> str:
        """A group's name in what the notebook is told."""
        made = self._made.get(group, ())
        again = f" ({len(made)})" if len(made) > 1 else ""
        return ("world" if group == self.world else group) + again

    def collectives(self) -> dict[str, list[dict[str, Any]]]:
        """group name -> entries: number, kind, shapes, types, and whether it is done.

        The last eight of each group, and before them the first that is not done. No entry for
        "world": other groups have made so many that it is not known any more.
        """
        entries = [e for e in self._entries() if e["record_id"] > self._forgotten]
        entries = [e for e in entries if not e["is_p2p"]]
        made: dict[str, list[int]] = {}
        for entry in entries:
            same = made.setdefault(entry["process_group"][0], [])
            if entry["pg_id"] not in same:
                same.append(entry["pg_id"])
        self._made = made
        groups: dict[str, list[dict[str, Any]]] = {}
        for entry in entries:
            name = entry["process_group"][0]
            if entry["pg_id"] != made[name][-1]:
                continue
            groups.setdefault(self.name(name), []).append(
                {
                    "seq": entry["collective_seq_id"],
                    "op": entry["profiling_name"].rpartition(":")[2],
                    "shapes": entry["input_sizes"],
                    "dtypes": entry["input_dtypes"],
                    "done": bool(entry["retired"]),
                }
            )
        full = len(entries) >= FLIGHT_RECORDER_SIZE
        self.complete = not (full and not entries[0]["retired"])
        if full:
            groups.setdefault("world", [])
        return {name: _shortened(found) for name, found in groups.items()}

    def members(self) -> dict[str, list[int]]:
        """group name -> the ranks in it, in the order of their numbers in the group."""
        ranks = dist.distributed_c10d._world.pg_group_ranks
        return {
            self.name(group.group_name): sorted(numbers, key=numbers.get)
            for group, numbers in list(ranks.items())
            if isinstance(group, ProcessGroup)  # not the mark that stands for groups of others
        }


def _shortened(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = entries[-KEPT:]
    first_open = next((e for e in entries[:-KEPT] if not e["done"]), None)
    return last if first_open is None else [first_open, *last]
