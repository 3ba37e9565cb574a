"""What a checker uses inside the ranks: measure the learner's code and report findings.

A checker is a small function that runs in every rank of a fresh pool::

    def check_mean(mean, rank, world_size):
        x = torch.full((5,), float(rank))
        with measured() as seen:
            got = mean(x)
        want = torch.full((5,), (world_size - 1) / 2)
        return [
            expect_close("equal", got, want, atol=1e-6),
            expect_sent("bytes", seen, minimum=2 * (world_size - 1) / world_size * 20),
        ]

A finding names its case; the words for a case are in the exercise (``cases``), those for what is
wrong in ``dlcourse/words/check.toml``, so checkers hold no prose.

An answer may be anything: None, a string, a tensor on another device, a generator. So a checker
looks at it through `expect_close`, `as_number`, `as_truth`, `as_list` and `describe`, which take
whatever comes. What a checker asks of the other ranks goes through `gathered` and `largest`: these
have a process group of their own, so that a rank in which the learner's code left a collective out
is never matched with the checker's.
"""

from __future__ import annotations

import builtins
import math
import numbers
import reprlib
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlcourse.measure.run import Run
from dlcourse.words.units import digits, human_bytes, human_seconds

if TYPE_CHECKING:
    from dlcourse.measure.ledger import Ledger

Finding = dict[str, Any]  # {"case": str, "ok": bool, "key": str, "values": {str: str | number}}


@dataclass
class Measured:
    """One rank's record of a ``with measured()`` block; filled when the block ends."""

    record: dict[str, Any] = field(default_factory=dict)
    ledger: Ledger | None = None  # while the block runs

    @property
    def comm(self) -> list[dict[str, Any]]:
        return self.record.get("comm", [])

    def calls(self, op: str | None = None) -> int:
        """Number of collectives that this rank called, of one kind or of all."""
        return sum(op is None or event["op"] == op for event in self.comm)

    def sent(self) -> float:
        """Bytes that this rank's collectives send, by theory (see ``formulas.traffic``)."""
        return Run([self.record]).comm.ranks[0]["wire_bytes"] if self.record else 0.0

    def peak(self) -> int:
        """Largest number of bytes of live storages at one moment."""
        return self.record.get("memory", {}).get("peak_bytes", 0)

    def live(self) -> int:
        """Bytes of live storages at this moment of the block."""
        assert self.ledger is not None, "only while the block runs"
        self.ledger.storages.bury()
        return self.ledger.series.total


@contextmanager
def measured() -> Iterator[Measured]:
    """Record this rank's collectives, memory and time while the block runs."""
    import torch.distributed as dist

    from dlcourse.measure.recorder import Recorder

    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    result = Measured()
    recorder.start()
    result.ledger = recorder.ledger
    try:
        yield result
    finally:
        result.record, result.ledger = recorder.stop(), None


@contextmanager
def entered(*modules: str) -> Iterator[set[str]]:
    """Which of these modules have code that runs in this thread while the block runs.

    For an exercise whose answer is to be the learner's own: ``entered("torch.utils.checkpoint")``.
    Modules inside a named one count as that one. ``"module:function"`` is that function alone,
    where the module also has what an answer may use.
    """
    found: set[str] = set()

    def note(frame: types.FrameType, event: str, arg: object) -> None:
        name = frame.f_globals.get("__name__", "")
        function = f"{name}:{frame.f_code.co_name}"
        found.update(m for m in modules if m in (name, function) or name.startswith(f"{m}."))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def expect_own(case: str, found: set[str]) -> Finding:
    """No code of a library ran that does the exercise: see ``entered``."""
    return expect(case, not found, "library", module=", ".join(sorted(found)))


def expect(case: str, ok: bool, key: str = "unmet", **values: Any) -> Finding:
    """A finding of the exercise's own: ``key`` is one of its ``messages``, with its fields."""
    return {"case": case, "ok": bool(ok), "key": key, "values": values}


def expect_equal(case: str, got: Any, want: Any) -> Finding:
    """Exactly equal: tensors in shape, dtype and bits; numbers and truth values by ``==``."""
    return expect_close(case, got, want)


def expect_close(case: str, got: Any, want: Any, *, atol: float = 0.0) -> Finding:
    """Equal within ``atol`` (absolute). ``want`` is a tensor, a number or a truth value."""
    import torch

    if isinstance(want, torch.Tensor):
        return _compare_tensors(case, got, want, atol)
    value: Any = as_truth(got) if isinstance(want, bool) else as_number(got)
    if value is None:
        return not_truth(case, got) if isinstance(want, bool) else not_number(case, got)
    return expect(case, abs(value - want) <= atol, "value", got=_short(value), want=_short(want))


def as_number(got: Any) -> float | None:
    """An answer as a number: a Python or NumPy number, or a tensor of one element; else None."""
    if not isinstance(got, numbers.Real):
        got = _only_element(got)
    if isinstance(got, bool) or not isinstance(got, numbers.Real):
        return None
    try:
        return float(got)
    except OverflowError:  # a whole number beyond all floats
        return -math.inf if got < 0 else math.inf


def as_truth(got: Any) -> bool | None:
    """An answer as True or False, also from a tensor of one element; else None."""
    got = got if isinstance(got, bool) else _only_element(got)
    return bool(got) if isinstance(got, bool) or got in (0, 1) else None


def as_list(got: Any) -> list[Any] | None:
    """The elements of a list, a tuple or a range; None for anything else."""
    return list(got) if isinstance(got, list | tuple | range) and len(got) < 100_000 else None


def not_number(case: str, got: Any) -> Finding:
    """The finding for an answer of which `as_number` makes None."""
    return expect(case, False, "none" if got is None else "not_number", got=describe(got))


def not_truth(case: str, got: Any) -> Finding:
    """The finding for an answer of which `as_truth` makes None."""
    return expect(case, False, "none" if got is None else "not_truth", got=describe(got))


def describe(value: Any) -> str:
    """What an answer is, as ``Tensor(shape=(3,), dtype=float32)`` or ``'abc' (str)``. Never fails.

    Touches no element of a tensor, and calls no method of a learner's class.
    """
    kind = type(value).__name__
    if type(value) in _WRITTEN:
        return f"{_BRIEF.repr(value)} ({kind})"
    return _BRIEF.repr(value)


_WRITTEN = (int, float, str, bool, bytes, list, tuple, dict, set, complex, range)


class _Brief(reprlib.Repr):
    """``repr`` of a few elements; objects that are not Python's own by their kind alone."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = 40

    def repr1(self, x: Any, level: int) -> str:
        if type(x) in (list, tuple, dict, set, str):
            return super().repr1(x, level)
        if type(x) is int and x.bit_length() > 200:
            return f"int, {x.bit_length()} bits"
        if x is None or type(x) in _WRITTEN:
            text = builtins.repr(x)
            return text if len(text) <= 80 else text[:77] + "…"
        kind = type(x).__name__
        try:
            import torch

            if not isinstance(x, torch.Tensor):
                return f"{kind} object"
            where = "" if x.device.type == "cpu" else f", device={x.device.type}"
            dense = "" if x.layout == torch.strided else f", layout={str(x.layout)[6:]}"
            shape = tuple(x.shape)
            return f"{kind}(shape={shape}, dtype={str(x.dtype)[6:]}{where}{dense})"
        except Exception:  # a subclass that answers in its own way
            return kind


_BRIEF = _Brief()


def plain(value: Any) -> Any:
    """A value of a finding as what can be sent and written: a number, or a few words."""
    if isinstance(value, str):
        return value if len(value) <= 500 else value[:499] + "…"
    short = type(value) is int and value.bit_length() <= 200
    return value if short or type(value) in (bool, float) else _BRIEF.repr(value)


def gathered(value: Any) -> list[Any]:
    """One plain value from each rank, in their order. Every rank must call it."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value, group=_own_group())
    return found


def largest(value: Any) -> float:
    """The largest of the ranks' values, which are tensors of one element or numbers.

    A NaN anywhere is infinity: it must not be lost, and never passes for small.
    """
    found = [float(v) for v in gathered(float(value))]
    return max(math.inf if math.isnan(v) else v for v in found)


def _own_group() -> Any:
    """The checker's process group: the same ranks as the learner's, and never their messages."""
    import torch.distributed as dist

    world = dist.group.WORLD
    if _groups.get("of") is not world:
        _groups.update(of=world, own=dist.new_group())
    return _groups["own"]


_groups: dict[str, Any] = {}


def expect_sent(
    case: str,
    seen: Measured,
    *,
    minimum: float,
    at_most: float = 1.05,
    at_least: float = 0.0,
    key: str = "bytes",
) -> Finding:
    """The rank's collectives send at most ``at_most`` times ``minimum`` bytes.

    With ``at_least`` they also send that many times the minimum: else an answer that sends nothing
    has sent no byte too many. Leave it out where a right answer may send fewer, numbers of a
    smaller type, say.
    """
    sent = seen.sent()
    ratio = sent / minimum if minimum else float("inf") if sent else 1.0
    few = ratio < at_least
    return expect(
        case,
        at_least <= ratio <= at_most,
        "too_few_bytes" if few else key,
        got=human_bytes(sent),
        minimum=human_bytes(minimum),
        ratio=ratio,
        allowed=at_least if few else at_most,
    )


def expect_calls(case: str, seen: Measured, op: str, times: int) -> Finding:
    """The rank called collective ``op`` exactly ``times`` times."""
    got = seen.calls(op)
    return expect(case, got == times, "calls", op=op, got=got, want=times)


def expect_at_most(case: str, name: str, got: float, limit: float, unit: str = "") -> Finding:
    """A measured number (peak bytes, seconds, steps …) stays within a target."""
    return expect(
        case, got <= limit, "at_most", name=name, got=_human(got, unit), limit=_human(limit, unit)
    )


def expect_at_least(case: str, name: str, got: float, limit: float, unit: str = "") -> Finding:
    """A measured number (share of hidden communication …) reaches a target."""
    return expect(
        case, got >= limit, "at_least", name=name, got=_human(got, unit), limit=_human(limit, unit)
    )


def _compare_tensors(case: str, got: Any, want: Any, atol: float) -> Finding:
    import torch

    if got is None:
        return expect(case, False, "none")
    if not isinstance(got, torch.Tensor) or got.layout != torch.strided:
        return expect(case, False, "type", got=describe(got), want="Tensor")
    if got.shape != want.shape:
        return expect(case, False, "shape", got=_shape(got), want=_shape(want))
    if got.dtype != want.dtype:
        return expect(case, False, "dtype", got=str(got.dtype), want=str(want.dtype))
    if got.device.type != want.device.type:
        return expect(case, False, "device", got=got.device.type, want=want.device.type)
    a, b = got.detach().flatten().double(), want.detach().flatten().double()
    off = (a - b).abs().nan_to_num(nan=float("inf"))
    off[a == b] = 0.0  # equal infinities
    if not len(off) or off.max() <= atol:
        return expect(case, True)
    worst = int(off.argmax())
    return expect(
        case,
        False,
        "far",
        error=_short(float(off[worst])),
        atol=_short(atol),
        got=_short(float(a[worst])),
        want=_short(float(b[worst])),
    )


def _only_element(got: Any) -> Any:
    """The element of a tensor, an array or a NumPy scalar that holds one; else None."""
    import torch

    if isinstance(got, torch.Tensor):
        readable = got.numel() == 1 and got.device.type != "meta" and got.layout == torch.strided
        return got.item() if readable else None
    if type(got).__module__ == "numpy" and getattr(got, "size", 0) == 1:
        return got.item()
    return None


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))


def _human(value: float, unit: str) -> str:
    if unit == "bytes":
        return human_bytes(value)
    if unit == "s":
        return human_seconds(value)
    return f"{digits(value)}{'' if unit in ('', '%') else ' '}{unit}"


def _short(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else _BRIEF.repr(value)
