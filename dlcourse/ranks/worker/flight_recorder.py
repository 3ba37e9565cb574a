"""The collectives that a rank has called: the one place that reads torch's flight recorder.

The recorder is private to torch; it keeps the last `FLIGHT_RECORDER_SIZE` calls of all groups.
"""

from __future__ import annotations

import json
from typing import Any

import torch.distributed as dist
from torch.distributed import ProcessGroup

from dlcourse.ranks.diagnosis.state import WORLD
from dlcourse.ranks.new_process import FLIGHT_RECORDER_SIZE

KEPT = 8  # collectives of each group that are told to the notebook


class FlightRecorder:
    """The last collectives of each process group, from torch's flight recorder."""

    def __init__(self) -> None:
        self.world = "0"  # torch's name of the group of all ranks
        self._forgotten = -1  # entries up to this one belong to a group that is gone
        # name -> groups that have had it, one after the other: a rank may still be in the first
        # while another is in the second.
        self._made: dict[str, list[int]] = {}
        self.complete = True  # whether the last answer knew every collective under way

    def _entries(self) -> list[dict[str, Any]]:
        from torch._C._distributed_c10d import _dump_fr_trace_json  # type: ignore[attr-defined]

        try:
            return json.loads(_dump_fr_trace_json(True, False)).get("entries", [])
        except (RuntimeError, ValueError):
            return []

    def forget(self) -> None:
        """Start anew, with a new process group."""
        self._forgotten = max((e["record_id"] for e in self._entries()), default=self._forgotten)

    def under_way(self) -> bool:
        """Whether something that this rank has started has not ended."""
        entries = (e for e in self._entries() if e["record_id"] > self._forgotten)
        return any(not entry["retired"] for entry in entries)

    def name(self, group: str) -> str:
        """A group's name in what the notebook is told."""
        made = self._made.get(group, ())
        again = f" ({len(made)})" if len(made) > 1 else ""
        return (WORLD if group == self.world else group) + again

    def last(self) -> dict[str, list[dict[str, Any]]]:
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
            groups.setdefault(WORLD, [])
        return {name: _shortened(found) for name, found in groups.items()}

    def members(self) -> dict[str, list[int]]:
        """group name -> the ranks in it, in the order of their numbers in the group."""
        ranks = dist.distributed_c10d._world.pg_group_ranks
        return {
            self.name(group.group_name): sorted(numbers, key=numbers.__getitem__)
            for group, numbers in list(ranks.items())
            if isinstance(group, ProcessGroup)  # not the mark that stands for groups of others
        }


def _shortened(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = entries[-KEPT:]
    first_open = next((e for e in entries[:-KEPT] if not e["done"]), None)
    return last if first_open is None else [first_open, *last]
