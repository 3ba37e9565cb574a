"""Every collective of this process: what, how many bytes, from when to when.

All of torch's collectives pass its dispatcher as `c10d::...` operators: those of Python code,
of functional collectives and DTensor, and those that DDP's reducer starts in C++. A kernel
registered there under the key `BackendSelect`, which every call passes just before its
backend, sees them all, in every thread, and costs nothing where there is no collective. A
`TorchDispatchMode` would have to look at every operator to find them.

When a collective *ends* is known from the future of its `Work` (Gloo, NCCL), so an
asynchronous one has its real end and not that of the call that started it. Gloo's send, recv
and reduce_scatter have no future: they end when `Work.wait()` returns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C import DispatchKey
from torch.distributed.distributed_c10d import ProcessGroup, Work

from dlcourse.measure.timeline import Mark, Marks, clock

MAX_EVENTS = 50_000  # a cell; more are counted in the totals only

# c10d operator -> torch's name for it, and the argument that holds the buffer of S bytes:
# the whole input of a reduce-scatter, the whole output of an all-gather.
_OPERATORS = {
    "allreduce_": ("all_reduce", "tensors"),
    "allreduce_coalesced_": ("all_reduce", "tensors"),
    "allgather_": ("all_gather", "output_tensors"),
    "_allgather_base_": ("all_gather", "output_tensor"),
    "allgather_coalesced_": ("all_gather", "output_lists"),
    "allgather_into_tensor_coalesced_": ("all_gather", "outputs"),
    "reduce_scatter_": ("reduce_scatter", "input_tensors"),
    "_reduce_scatter_base_": ("reduce_scatter", "input_tensor"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", "inputs"),
    "alltoall_": ("all_to_all", "input_tensors"),
    "alltoall_base_": ("all_to_all", "input"),
    "broadcast_": ("broadcast", "tensors"),
    "reduce_": ("reduce", "tensors"),
    "gather_": ("gather", "input_tensors"),
    "scatter_": ("scatter", "output_tensors"),
    "send": ("send", "tensors"),
    "recv_": ("recv", "tensors"),
    "recv_any_source_": ("recv", "tensors"),
    "barrier": ("barrier", None),
    "monitored_barrier_": ("barrier", None),
}
# The same on fake tensors, where functional collectives are not taken apart.
_FUNCTIONAL = {
    "broadcast": "broadcast",
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
}
_PER_RANK = ("gather", "scatter")  # the argument named above is one rank's share of S


class Event:
    """One collective, seen from this rank."""

    __slots__ = (
        "asynchronous",
        "dtype",
        "end",
        "group",
        "group_size",
        "issued_ns",
        "nbytes",
        "on_gpu",
        "op",
        "peer",
        "sent",
        "seq",
        "start",
    )

    def as_dict(self, marks: Marks) -> dict[str, Any]:
        """The event as it stands in a record."""
        start = marks.resolve(self.start)
        end = marks.resolve(self.end)
        event = {
            "op": self.op,
            "seq": self.seq,
            "group": self.group,
            "group_size": self.group_size,
            "bytes": self.nbytes,
            "dtype": self.dtype,
            "async": self.asynchronous,
            "start_ns": start,
            "end_ns": None if end is None else max(start, end),
            "peer": self.peer,
        }
        if self.sent is not None:
            event["sent_bytes"] = self.sent
        return event


class _Signature:
    """Where the arguments of one operator are that we need."""

    def __init__(self, overload: Any, op: str, buffer: str | None) -> None:
        self.op, self.buffer = op, buffer
        arguments = overload._schema.arguments
        self.names = [a.name for a in arguments]
        self.tensor_names = [a.name for a in arguments if "Tensor" in str(a.type)]
        # A value equal to the default is left out of a call; for async_op that is True.
        self.asynchronous = next((n for n in self.names if n in ("async_op", "asyncOp")), "")
        self.default = any(a.name == self.asynchronous and a.default_value for a in arguments)

    def bind(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


class Collectives:
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
        handed: Callable[[Iterator[Tensor]], None] | None,
        starting: Callable[[], None],
        mine: Callable[[], bool],
    ) -> None:
        self._marks, self._blocked, self._handed, self._starting = marks, blocked, handed, starting
        self._mine = mine
        self._restore: list[tuple[type, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Start a new cell."""
        self.events: list[Event] = []
        self.bytes: dict[str, int] = {}
        self.calls: dict[str, int] = {}
        self.waiting: Event | None = None  # the call that the recorded thread is blocked in
        self.pending: dict[int, Event] = {}  # id(event) -> event, started and not ended
        self._works: dict[int, tuple[Any, Event, bool]] = {}  # Work, its event, has a future
        self._sequence: dict[Any, int] = {}
        self._outputs: dict[int, Event] = {}  # storage -> event whose Work has no future

    # ------------------------------------------------------------------ on and off

    def start(self) -> None:
        """Register the kernels and watch `Work.wait`."""
        if not dist.is_available():
            return
        if not _recording:
            _register_kernels()
        _recording.append(self)
        for cls in (Work, torch._C.Future):
            self._restore.append((cls, cls.wait))
            cls.wait = self._waiting(cls.wait)

    def stop(self) -> None:
        """Take everything off again."""
        while self._restore:
            cls, wait = self._restore.pop()
            cls.wait = wait
        if self in _recording:
            _recording.remove(self)
            if not _recording:
                _unregister_kernels()
        self._works.clear()
        self._outputs.clear()
        self.waiting = None

    def call(self, signature: _Signature, run: Callable[..., Any], args: tuple, kwargs: Any) -> Any:
        """Run a collective and record it."""
        event = self.begin(signature, args, kwargs)
        if event is None:
            return run(*args, **kwargs)
        own = self._mine()
        if own:
            self.waiting = event
        try:
            result = run(*args, **kwargs)
        except BaseException:
            self.ended(event)
            raise
        finally:
            if own:
                self.waiting = None
                self._blocked(event.start, self._marks.now())
        self._follow(event, result, args)
        return result

    def wait_tensor(self, run: Callable[..., Any], tensor: Tensor) -> Any:
        """Functional collectives wait for their result with an operator, not with a Work."""
        own = self._mine()
        event = self._outputs.pop(tensor.untyped_storage()._cdata, None)
        since = self._marks.now()
        if own:
            self.waiting = event
        try:
            result = run(tensor)
            if event is not None:
                self.ended(event)
            return result
        finally:
            if own:
                self.waiting = None
                self._blocked(since, self._marks.now())

    # ------------------------------------------------------------------ one collective

    def begin(self, signature: _Signature, args: tuple, kwargs: dict[str, Any]) -> Event | None:
        """Describe a collective that is about to start. None: not one of ours."""
        given = signature.bind(args, kwargs)
        tensors = list(_flat(given[name] for name in signature.tensor_names))
        buffers = [] if signature.buffer is None else list(_flat([given[signature.buffer]]))
        if any(t.is_meta for t in buffers):
            return None  # a fake tensor: `fake` counts it
        group = ProcessGroup.unbox(given["process_group"])
        event = Event()
        event.op = op = signature.op
        event.group, event.group_size = group.group_name, group.size()
        event.nbytes = sum(t.nbytes for t in buffers)
        event.dtype = str(buffers[0].dtype).removeprefix("torch.") if buffers else ""
        if op in _PER_RANK:
            event.nbytes *= event.group_size
        event.asynchronous = bool(given.get(signature.asynchronous, signature.default))
        event.on_gpu = self._marks.cuda and _queued_on_gpu(group, tensors)
        event.peer, event.sent = None, None
        if op in ("send", "recv"):
            peer = given.get("dst", given.get("src"))
            event.peer = None if peer is None else _global_rank(group, peer)
        elif op == "all_to_all":
            event.sent = _sent_to_others(given, event.nbytes, group)
        self._number(event)
        if self._handed is not None and op != "barrier":
            self._handed(tensors)
        self._add(event)
        return event

    def fake(self, overload: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Count a collective on fake tensors, which takes no time."""
        name = overload._opname
        if name in _OPERATORS:
            signature = _signature(overload, *_OPERATORS[name])
            given = signature.bind(args, kwargs)
            group = ProcessGroup.unbox(given["process_group"])
            group_name, size = group.group_name, group.size()
            op = signature.op
            buffers = [] if signature.buffer is None else list(_flat([given[signature.buffer]]))
            nbytes = sum(t.nbytes for t in buffers) * (size if op in _PER_RANK else 1)
        else:
            op = _FUNCTIONAL.get(
                name.removesuffix("_").removesuffix("_coalesced").removesuffix("_out")
            )
            if op is None:
                return
            signature = _signature(overload, op, None)
            given = signature.bind(args, kwargs)
            group_name = given["group_name"]
            if not isinstance(group_name, str):
                group_name = ProcessGroup.unbox(group_name).group_name
            size = dist.distributed_c10d._resolve_process_group(group_name).size()
            buffers = list(_flat([given.get("input", given.get("inputs"))]))
            nbytes = sum(t.nbytes for t in buffers) * (size if op == "all_gather" else 1)
        event = Event()
        event.op, event.group, event.group_size, event.nbytes = op, group_name, size, int(nbytes)
        event.dtype = str(buffers[0].dtype).removeprefix("torch.") if buffers else ""
        event.asynchronous, event.on_gpu, event.peer, event.sent = False, False, None, None
        self._number(event)
        if self._handed is not None and op != "barrier":
            self._handed(buffers)
        self._add(event)
        self.ended(event)

    def _number(self, event: Event) -> None:
        # Collectives of a group have the same number on all its ranks; so have the messages
        # between two ranks. Numbers start at 1 in each cell.
        between_two = event.op in ("send", "recv")
        key = (event.group, event.op, event.peer) if between_two else event.group
        event.seq = self._sequence[key] = self._sequence.get(key, 0) + 1

    def _add(self, event: Event) -> None:
        op = event.op
        self.bytes[op] = self.bytes.get(op, 0) + event.nbytes
        self.calls[op] = self.calls.get(op, 0) + 1
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        event.end = None
        self.pending[id(event)] = event
        self._starting()
        event.issued_ns = clock()
        event.start = self._marks.now() if event.on_gpu else event.issued_ns

    def _follow(self, event: Event, result: Any, args: tuple) -> None:
        """Find out when the collective will have ended."""
        work = result[-1] if isinstance(result, tuple) else result
        if work is None:  # a blocking call, such as monitored_barrier
            self.ended(event)
            return
        try:
            work = Work.unbox(work)
        except RuntimeError:  # not a Work: part of a coalesced group
            return
        try:
            future = work.get_future()
        except RuntimeError:  # "getFuture not implemented": ends in wait()
            future = None
        self._works[id(work)] = (work, event, future is not None)
        if future is None:
            for tensor in _flat(args):
                self._outputs[tensor.untyped_storage()._cdata] = event
        else:
            future.add_done_callback(partial(self._done, event, id(work)))

    def _done(self, event: Event, work: int, future: Any) -> None:
        self.ended(event)
        self._works.pop(work, None)

    def ended(self, event: Event) -> None:
        """The collective is complete (called from any thread; the first call counts)."""
        if event.end is None:
            event.end = self._marks.now() if event.on_gpu else clock()
        self.pending.pop(id(event), None)

    def _waiting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def wait(work: Any, *args: Any, **kwargs: Any) -> Any:
            own = self._mine()
            known = self._works.get(id(work))
            event = known[1] if known else None
            since = self._marks.now()
            if own:
                self.waiting = event
            try:
                result = original(work, *args, **kwargs)
                # On a GPU wait() only orders streams: the future tells the end, if there is one.
                if event is not None and not (event.on_gpu and known[2]):
                    self.ended(event)
                    self._works.pop(id(work), None)
                return result
            finally:
                if own:
                    self.waiting = None
                    self._blocked(since, self._marks.now())

        return wait


_recording: list[Collectives] = []  # the last one records: a recorder inside another
_libraries: list[torch.library.Library] = []
_signatures: dict[Any, _Signature] = {}


def _register_kernels() -> None:
    after = torch._C._dispatch_keyset_full_after(DispatchKey.BackendSelect)
    library = torch.library.Library("c10d", "IMPL")
    for name, (op, buffer) in _OPERATORS.items():
        packet = getattr(torch.ops.c10d, name, None)
        if packet is not None:
            overload = packet.default
            kernel = _kernel(overload, after, _signature(overload, op, buffer))
            library.impl(name, kernel, "BackendSelect", with_keyset=True)
    _libraries.append(library)
    wait = torch.ops._c10d_functional.wait_tensor.default

    def wait_tensor(keyset: Any, tensor: Tensor) -> Any:
        run = partial(wait.redispatch, keyset & after)
        return _recording[-1].wait_tensor(run, tensor) if _recording else run(tensor)

    library = torch.library.Library("_c10d_functional", "IMPL")
    library.impl("wait_tensor", wait_tensor, "BackendSelect", with_keyset=True)
    _libraries.append(library)


def _unregister_kernels() -> None:
    while _libraries:
        _libraries.pop()._destroy()


def _kernel(overload: Any, after: Any, signature: _Signature) -> Callable[..., Any]:
    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        run = partial(overload.redispatch, keyset & after)
        if not _recording:  # the last recorder stopped while another thread was on its way here
            return run(*args, **kwargs)
        return _recording[-1].call(signature, run, args, kwargs)

    return kernel


def _signature(overload: Any, op: str, buffer: str | None) -> _Signature:
    known = _signatures.get(overload)
    if known is None:
        known = _signatures[overload] = _Signature(overload, op, buffer)
    return known


def _flat(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flat(value)


def _queued_on_gpu(group: ProcessGroup, tensors: list[Tensor]) -> bool:
    """Whether the collective runs in a stream (NCCL), and not in a thread (Gloo)."""
    if not tensors or not tensors[0].is_cuda:
        return False
    try:
        return group._get_backend(tensors[0].device).name() != "gloo"
    except RuntimeError:
        return True


def _global_rank(group: ProcessGroup, peer: int) -> int:
    with contextlib.suppress(Exception):  # a group that torch's tables do not know
        return dist.get_global_rank(group, peer)
    return peer


def _sent_to_others(given: dict[str, Any], nbytes: int, group: ProcessGroup) -> int:
    """Bytes of an all-to-all that leave this rank: all but the part for itself."""
    me = group.rank()
    parts = given.get("input_tensors")
    if parts is not None:
        return nbytes - parts[me].nbytes
    splits = given.get("input_split_sizes")
    if splits:
        rows = sum(splits)
        return nbytes - (nbytes * splits[me] // rows if rows else 0)
    return nbytes - nbytes // group.size()
