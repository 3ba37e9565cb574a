"""Bytes that a rank sends along each side of a mesh, from what the recorder saw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlcourse.formulas.traffic import wire_bytes


def sent_by_side(calls: Iterable[Mapping[str, Any]], groups: Mapping[str, str]) -> dict[str, float]:
    """Bytes of one rank's collectives and messages, by the side of the mesh that they go along.

    Args:
        calls: of one rank: ``run.comm.calls`` of it, or a record's "comm".
        groups: side -> name of this rank's process group, ``mesh.get_group(side).group_name``.
            Calls of other groups are left out.
    """
    side_of = {name: side for side, name in groups.items()}
    sent = dict.fromkeys(groups, 0.0)
    for call in calls:
        if side := side_of.get(call["group"]):
            sent[side] += wire_bytes(call["op"], call["bytes"], call["group_size"])
    return sent
