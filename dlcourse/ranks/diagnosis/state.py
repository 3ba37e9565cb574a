"""What is known of a rank when a cell is judged: what it has called, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

WORLD = "world"  # the group of all ranks
ANY = -1  # the peer of a receive that takes what comes first

# "send", "recv", "ended" or "taken" (see `worker/waits.py`), group, peer's number in it, tag
MessageKey = tuple[str, str, int, int]


@dataclass
class RankState:
    """What is known of one rank when a cell is judged."""

    rank: int
    kind: str  # "done", "failed", "dead", "running"
    failure: dict[str, Any] | None = None  # of a failed rank
    where: dict[str, Any] | None = None  # of a running rank
    status: int | None = None  # wait status of a dead rank
    last_words: tuple[str, ...] = ()
    collectives: dict[str, list[dict[str, Any]]] | None = None
    members: dict[str, list[int]] = field(default_factory=dict)  # group -> ranks, in its order
    messages: dict[MessageKey, int | None] = field(default_factory=dict)  # None: not known
    blind: bool = False  # messages were posted that nobody counted

    def progress(self, group: str) -> int | None:
        """The number of the last collective that this rank started in a group; None: unknown."""
        entries = (self.collectives or {}).get(group)
        if entries:
            return entries[-1]["seq"]
        return 0 if entries is None and self.kind != "dead" else None

    def posted(self, *message: Any) -> int | None:
        """How often this rank has posted a message; None: unknown."""
        return None if self.blind else self.messages.get(message, 0)

    def under_way(self) -> list[tuple[str, dict[str, Any]]]:
        """The first collective of each group that has not ended when a rank was looked at."""
        if not self.where:
            return []
        groups = self.where["collectives"]
        first = {g: next((e for e in groups[g] if not e["done"]), None) for g in groups}
        return [(group, entry) for group, entry in first.items() if entry is not None]

    def waiting(self) -> tuple[str, dict[str, Any]] | None:
        """The group and the collective that a rank waits in, or has begun and not ended."""
        return next(iter(self.under_way()), None)

    def waits_for_message(self) -> dict[str, Any] | None:
        """The message whose end a rank waits for."""
        wait = (self.where or {}).get("wait") or {}
        return wait if "direction" in wait else None

    def message_call(self) -> dict[str, Any] | None:
        """The call whose message a rank waits for, its peer by its number among all ranks."""
        message = self.waits_for_message()
        call = (self.where or {}).get("call")
        if message is None or call is not None:
            return call
        members = self.members.get(message["group"], [])
        peer = message["peer"]
        named = {"peer": members[peer]} if 0 <= peer < len(members) else {}
        return {"op": message["direction"], **named}

    def entry(self, group: str, seq: int) -> dict[str, Any] | None:
        """The collective with a number, if this rank still remembers it."""
        for entry in (self.collectives or {}).get(group, []):
            if entry["seq"] == seq:
                return entry
        return None
