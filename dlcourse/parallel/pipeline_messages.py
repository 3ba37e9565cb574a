"""The messages of a pipeline: activations go forward, gradients come back.

A schedule says only who computes what. Who sends what to whom follows from it, and every rank has
the whole schedule: so each rank knows, before the first message, all that will come, from whom and
in which order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.p2p import PendingMessage, irecv, isend
from dlcourse.parallel.pipeline_schedules import Action, Schedule

# Steps that each group has begun. Messages carry the number: a step that failed may leave receives
# behind, in this model or in another one, and they must not take a later step's messages.
_steps: WeakKeyDictionary[dist.ProcessGroup | None, int] = WeakKeyDictionary()

MessageKey = tuple[str, int, int]  # "F" or "B", micro-batch, and the stage that needs it


@dataclass
class Incoming:
    """All messages from one other rank to this one, in the order in which that rank sends them."""

    messages: list[MessageKey] = field(default_factory=list)
    used: dict[MessageKey, list[MessageKey]] = field(default_factory=dict)  # ours, used before
    posted: int = 0


class Mailbox:
    """Receives are posted one message ahead, and no send is waited for until it has arrived.

    When has it? Once a message comes back that the other rank can only have made after it used
    ours. So where ``validate`` finds no deadlock, there is none, and sent activations do not pile
    up. Between two ranks each direction has a group of its own on NCCL, where one stream would
    otherwise carry both (not tried on GPUs yet).

    Args:
        schedule: for all ranks.
        process_group: as many ranks as the schedule has; all by default.
    """

    def __init__(self, schedule: Schedule, process_group: dist.ProcessGroup | None = None) -> None:
        self.schedule, self.rank = schedule, dist.get_rank(process_group)
        self.process_group = process_group
        self.groups = {"up": process_group, "down": process_group}
        if dist.get_backend(process_group) == "nccl":
            ranks = dist.get_process_group_ranks(process_group)
            for direction in self.groups:
                self.groups[direction] = dist.new_group(ranks, use_local_synchronization=True)
        self.incoming = {r: self._incoming(r) for r in range(schedule.num_ranks) if r != self.rank}

    def _incoming(self, other: int) -> Incoming:
        incoming, used = Incoming(), []
        for action in self.schedule.ranks[other]:
            needed, made = self._needed(other, action), self._made(other, action)
            if needed is not None and self._source(needed) == self.rank:
                used.append(needed)
            if made is not None and self._target(made) == self.rank:
                incoming.messages.append(made)
                incoming.used[made], used = used, []
        return incoming

    def _needed(self, rank: int, action: Action) -> MessageKey | None:
        """The message without which an action cannot begin."""
        stage = self.schedule.stage(rank, action.chunk)
        end = 0 if action.kind == "F" else self.schedule.num_stages - 1
        if action.kind == "W" or stage == end:
            return None
        return action.kind[0], action.micro_batch, stage

    def _made(self, rank: int, action: Action) -> MessageKey | None:
        """The message that an action makes, for the stage behind or before."""
        stage = self.schedule.stage(rank, action.chunk) + (1 if action.kind == "F" else -1)
        if action.kind == "W" or not 0 <= stage < self.schedule.num_stages:
            return None
        return action.kind[0], action.micro_batch, stage

    def _source(self, message: MessageKey) -> int:
        kind, _, stage = message
        return self.schedule.where(stage - 1 if kind == "F" else stage + 1)[0]

    def _target(self, message: MessageKey) -> int:
        return self.schedule.where(message[2])[0]

    def open(self, like: Tensor) -> None:
        """Begin a step, in which every message has the shape, dtype and device of ``like``."""
        self.like = like
        group = self.process_group or dist.group.WORLD  # there may be a new one
        self.step = _steps[group] = _steps.get(group, 0) + 1
        self.here: dict[MessageKey, Tensor] = {}  # from one chunk of this rank to the other
        self.arriving: dict[MessageKey, tuple[Tensor, PendingMessage]] = {}
        self.leaving: dict[MessageKey, PendingMessage] = {}
        for source, incoming in self.incoming.items():
            incoming.posted = 0
            self._expect_next(source)

    def receive(self, action: Action) -> Tensor | None:
        """Wait for the message that an action needs; None if it needs none."""
        message = self._needed(self.rank, action)
        if message is None:
            return None
        if message in self.here:
            return self.here.pop(message)
        source = self._source(message)
        while message not in self.arriving:
            self._expect_next(source)
        tensor, work = self.arriving.pop(message)
        work.wait()
        self._expect_next(source)
        for used in self.incoming[source].used[message]:
            self.leaving.pop(used).wait()  # at once, for it has arrived
        return tensor

    def send(self, action: Action, tensor: Tensor | None) -> None:
        """Send what an action has made, if any stage needs it. None goes as zeros (all frozen).

        Raises:
            ValueError: it is not like the others, which is what the other rank waits for.
        """
        message = self._made(self.rank, action)
        if message is None:
            return
        tensor = torch.zeros_like(self.like) if tensor is None else tensor.contiguous()
        if (tensor.shape, tensor.dtype) != (self.like.shape, self.like.dtype):
            raise ValueError(
                f"{action} gives {tuple(tensor.shape)} of {tensor.dtype}, and messages between "
                f"stages are {tuple(self.like.shape)} of {self.like.dtype}: a block must return "
                "the shape and type that it gets"
            )
        to = self._target(message)
        if to == self.rank:
            self.here[message] = tensor
            return
        group = self.groups["up" if self.rank < to else "down"]
        self.leaving[message] = isend(tensor, to, group, tag=self.step)

    def close(self) -> None:
        """End the step: wait until everything has left."""
        for message in self.leaving.values():
            message.wait()

    def _expect_next(self, source: int) -> None:
        incoming = self.incoming[source]
        if incoming.posted < len(incoming.messages):
            tensor = torch.empty_like(self.like)
            group = self.groups["up" if source < self.rank else "down"]
            work = irecv(tensor, source, group, tag=self.step)
            self.arriving[incoming.messages[incoming.posted]] = tensor, work
            incoming.posted += 1
