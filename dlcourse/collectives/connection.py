"""Whether what was sent in a step still concerns the next one."""

from __future__ import annotations

import itertools
import weakref

import torch.distributed as dist

_numbers: weakref.WeakKeyDictionary[dist.ProcessGroup, int] = weakref.WeakKeyDictionary()
_next = itertools.count()
_given_up = 0


class Connection:
    """The connections of this rank as they are now.

    A step that an exception or a Stop has ended leaves messages behind, and messages that were not
    sent. Once the cell has ended, no rank waits for them: where the ranks were out of step, their
    group was made anew, and where they were not, all have sent as much. They are to be forgotten.
    """

    def __init__(self) -> None:
        self.number = _number()  # not the group itself: wrappers are copied and saved

    def was_cut(self) -> bool:
        """Whether a step was given up since, or the default process group is another one."""
        return self.number != _number()


def give_up() -> None:
    """What this rank has begun to send is not continued: its cell has failed."""
    global _given_up
    _given_up += 1


def _number() -> tuple[int, int]:
    group = dist.group.WORLD
    return -1 if group is None else _numbers.setdefault(group, next(_next)), _given_up
