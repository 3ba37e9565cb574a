"""Whether what was sent can still arrive."""

from __future__ import annotations

import itertools
import weakref

import torch.distributed as dist

_numbers: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
_next = itertools.count()


class Connection:
    """The connections of a process group as they are now.

    Ranks that live on after a failed collective get a new default group. What was under way in the
    old one never arrives, and no other rank waits for it: it is to be forgotten, not answered.

    Args:
        process_group: the default one if None; no other is made anew.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.number = _number_of_default() if process_group is None else None

    def was_cut(self) -> bool:
        """Whether the ranks have made their default group anew since."""
        return self.number is not None and self.number != _number_of_default()


def _number_of_default() -> int:
    """The same for as long as the group lives. A number, for wrappers are copied and saved."""
    group = dist.group.WORLD
    assert group is not None
    return _numbers.setdefault(group, next(_next))
