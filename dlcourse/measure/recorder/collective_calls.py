"""Every collective of this process: what, how many bytes, from when to when.

When a collective *ends* is known from the future of its `Work` (Gloo, NCCL), so an
asynchronous one has its real end and not that of the call that started it. Gloo's send, recv
and reduce_scatter have no future: they end when `Work.wait()` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.distributed.distributed_c10d import ProcessGroup, Work

from dlcourse.measure import own_calls
from dlcourse.measure.recorder import collective_kernels
from dlcourse.measure.recorder.clock import Mark, Marks, clock
from dlcourse.measure.recorder.collective_operators import Call, read_call, read_fake_call
from dlcourse.measure.tensors import tensors_in

MAX_EVENTS = 50_000  # a cell; more are added up in `rest`


class Event:
    """One collective, seen from this rank.

    Attributes:
        call: what the rank has called.
        seq: its number in its group, from 1 on in each cell; a message's between the two ranks.
        on_gpu: it runs in a stream (NCCL), and not in a thread (Gloo).
    """

    __slots__ = ("call", "end", "issued_ns", "on_gpu", "seq", "start")

    def __init__(self, call: Call, seq: int, on_gpu: bool, start: Mark, issued_ns: int) -> None:
        self.call, self.seq, self.on_gpu = call, seq, on_gpu
        self.start, self.issued_ns = start, issued_ns
        self.end: Mark = None

    def as_dict(self, marks: Marks) -> dict[str, Any]:
        """The event as it stands in a record."""
        call, start, end = self.call, marks.resolve(self.start), marks.resolve(self.end)
        event = {
            "op": call.op,
            "seq": self.seq,
            "group": call.group,
            "group_size": call.group_size,
            "bytes": call.nbytes,
            "dtype": call.dtype,
            "async": call.asynchronous,
            "start_ns": start,
            "end_ns": None if end is None else max(start, end),
            "peer": call.peer,
        }
        if call.sent is not None:
            event["sent_bytes"] = call.sent
        return event


class CollectiveCalls:
    """Records collectives between `start` and `stop`.

    Args:
        marks: the clock.
        blocked: called with (since, until) when the recorded thread was blocked in a wait.
        handed: called with the tensors of each collective (the ledger); may be None.
        starting: called when a collective is about to start.
        mine: whether the calling thread does the rank's work (others are not "the rank waits").
    """

    def __init__(
        self,
        marks: Marks,
        blocked: Callable[[Mark, Mark], None],
        handed: Callable[[Iterable[Tensor]], None] | None,
        starting: Callable[[], None],
        mine: Callable[[], bool],
    ) -> None:
        self._marks, self._blocked, self._handed, self._starting = marks, blocked, handed, starting
        self._mine = mine
        self.reset()

    def reset(self) -> None:
        """Start a new cell."""
        self.events: list[Event] = []
        self.rest: dict[
            tuple[str, int, bool], dict[str, Any]
        ] = {}  # sums of those that are too many
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.waiting: Event | None = None  # the call that the recorded thread is blocked in
        self.pending: dict[int, Event] = {}  # id(event) -> event, started and not ended
        self._works: dict[int, tuple[Any, Event, Any]] = {}  # Work, its event, its future or None
        self._sequence: dict[Any, int] = {}
        self._outputs: dict[int, Event] = {}  # storage -> event whose Work has no future
        self._own: dict[own_calls.OwnCall, Event] = {}  # under way, and not torch's

    def start(self) -> None:
        """Begin to see every collective."""
        collective_kernels.listen(self)
        own_calls.listeners.append(self)

    def stop(self) -> None:
        """See none any more."""
        collective_kernels.leave(self)
        if self in own_calls.listeners:
            own_calls.listeners.remove(self)
        self._own.clear()
        # What has ended in C++ may still wait for Python's lock, to tell us from another thread.
        for _, event, future in list(self._works.values()):
            if future is not None and future.done():
                self._ended(event)
        self._works.clear()
        self._outputs.clear()
        self.waiting = None

    # ------------------------------------------------------------------ what passes

    def call(
        self, overload: Any, run: Callable[..., Any], args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """Run a collective and record it."""
        read = read_call(overload, args, kwargs)
        if read is None:  # on fake tensors: `fake` counts it
            return run(*args, **kwargs)
        call, tensors, group = read
        event = self._begin(call, tensors, self._marks.cuda and _queued_on_gpu(group, tensors))
        own = self._mine()
        if own:
            self.waiting = event
        try:
            result = run(*args, **kwargs)
        except BaseException:
            self._ended(event)
            raise
        finally:
            if own:
                self.waiting = None
                self._blocked(event.start, self._marks.now())
        self._follow(event, result, args)
        return result

    def own_begin(self, call: own_calls.OwnCall, tensors: Sequence[Tensor]) -> None:
        """A collective begins that does not pass torch; it blocks the rank until its end."""
        read = Call(
            op=call.collective,
            group=call.group,
            group_size=len(call.members),
            nbytes=call.nbytes,
            dtype=str(call.dtype).removeprefix("torch."),
            asynchronous=False,
            peer=None,
            sent=None,
        )
        event = self._own[call] = self._begin(read, list(tensors), on_gpu=False)
        if self._mine():
            self.waiting = event

    def own_end(self, call: own_calls.OwnCall) -> None:
        """It has ended."""
        event = self._own.pop(call, None)
        if event is None:  # begun before the recorder
            return
        event.call.sent = call.sent
        self._ended(event)
        if self._mine():
            self.waiting = None
            self._blocked(event.start, self._marks.now())

    def fake(self, overload: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Count a collective on fake tensors, which takes no time."""
        read = read_fake_call(overload, args, kwargs)
        if read is not None:
            self._ended(self._begin(*read, on_gpu=False))

    def wait(self, run: Callable[..., Any], work: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Wait for a `Work` or a future; the recorded thread is blocked meanwhile."""
        _, event, future = self._works.get(id(work), (None, None, None))

        def waited() -> None:
            # On a GPU wait() only orders streams: the future tells the end, if there is one.
            if event is not None and not (event.on_gpu and future is not None):
                self._ended(event)
                self._works.pop(id(work), None)

        return self._while_blocked(event, partial(run, work, *args, **kwargs), waited)

    def wait_tensor(self, run: Callable[..., Any], tensor: Tensor) -> Any:
        """Functional collectives wait for their result with an operator, not with a Work."""
        event = self._outputs.pop(tensor.untyped_storage()._cdata, None)

        def waited() -> None:
            if event is not None:
                self._ended(event)

        return self._while_blocked(event, partial(run, tensor), waited)

    def _while_blocked(
        self, event: Event | None, wait: Callable[[], Any], waited: Callable[[], None]
    ) -> Any:
        own = self._mine()
        since = self._marks.now()
        if own:
            self.waiting = event
        try:
            result = wait()
            waited()
            return result
        finally:
            if own:
                self.waiting = None
                self._blocked(since, self._marks.now())

    # ------------------------------------------------------------------ from start to end

    def _begin(self, call: Call, tensors: list[Tensor], on_gpu: bool) -> Event:
        op = call.op
        # Collectives of a group have the same number on all its ranks; so have the messages
        # between two ranks.
        between_two = op in ("send", "recv")
        key = (call.group, op, call.peer) if between_two else call.group
        seq = self._sequence[key] = self._sequence.get(key, 0) + 1
        if self._handed is not None and op != "barrier":
            self._handed(tensors)
        self.bytes[op] = self.bytes.get(op, 0) + call.nbytes
        self.calls[op] = self.calls.get(op, 0) + 1
        self._starting()
        issued_ns = clock()
        start = self._marks.now() if on_gpu else issued_ns
        event = Event(call, seq, on_gpu, start, issued_ns)
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self._add_to_rest(call)
        self.pending[id(event)] = event
        return event

    def _add_to_rest(self, call: Call) -> None:
        known = call.sent is not None
        none = {"op": call.op, "group_size": call.group_size, "calls": 0, "bytes": 0}
        none |= {"sent_bytes": 0 if known else None}
        row = self.rest.setdefault((call.op, call.group_size, known), none)
        row["calls"] += 1
        row["bytes"] += call.nbytes
        if call.sent is not None:
            row["sent_bytes"] += call.sent

    def _follow(self, event: Event, result: Any, args: tuple) -> None:
        """Find out when the collective will have ended."""
        work = result[-1] if isinstance(result, tuple) else result
        if work is None:  # a blocking call, such as monitored_barrier
            self._ended(event)
            return
        try:
            work = Work.unbox(work)
        except RuntimeError:  # not a Work: part of a coalesced group
            return
        try:
            future = work.get_future()
        except RuntimeError:  # "getFuture not implemented": ends in wait()
            future = None
        self._works[id(work)] = (work, event, future)
        if future is None:
            for tensor in tensors_in(args):
                self._outputs[tensor.untyped_storage()._cdata] = event
        else:
            future.add_done_callback(partial(self._done, event, id(work)))

    def _done(self, event: Event, work: int, future: Any) -> None:
        self._ended(event)
        self._works.pop(work, None)

    def _ended(self, event: Event) -> None:
        """The collective is complete (called from any thread; the first call counts)."""
        if event.end is None:
            event.end = self._marks.now() if event.on_gpu else clock()
        self.pending.pop(id(event), None)


def _queued_on_gpu(group: ProcessGroup, tensors: list[Tensor]) -> bool:
    """Whether the collective runs in a stream (NCCL), and not in a thread (Gloo)."""
    if not tensors or not tensors[0].is_cuda:
        return False
    try:
        return group._get_backend(tensors[0].device).name() != "gloo"
    except RuntimeError:
        return True
