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
wrong in ``dlcourse.panel.words_course``, so checkers hold no prose.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from dlcourse.measure.run import Run
from dlcourse.panel.units import digits, human_bytes, human_seconds

Finding = dict[str, Any]  # {"case": str, "ok": bool, "key": str, "values": {str: str | number}}


@dataclass
class Measured:
    """One rank's record of a ``with measured()`` block; filled when the block ends."""

    record: dict[str, Any] = field(default_factory=dict)

    @property
    def comm(self) -> list[dict[str, Any]]:
        return self.record.get("comm", [])

    def calls(self, op: str | None = None) -> int:
        """Number of collectives that this rank called, of one kind or of all."""
        return sum(op is None or event["op"] == op for event in self.comm)

    def sent(self) -> float:
        """Bytes that this rank's collectives send, by theory (see ``measure.run.wire_bytes``)."""
        return Run([self.record]).comm.ranks[0]["wire_bytes"] if self.record else 0.0

    def peak(self) -> int:
        """Largest number of bytes of live storages at one moment."""
        return self.record.get("memory", {}).get("peak_bytes", 0)


@contextmanager
def measured() -> Iterator[Measured]:
    """Record this rank's collectives, memory and time while the block runs."""
    import torch.distributed as dist

    from dlcourse.measure.recorder import Recorder

    recorder = Recorder(dist.get_rank(), dist.get_world_size())
    result = Measured()
    recorder.start()
    try:
        yield result
    finally:
        result.record = recorder.stop()


def expect(case: str, ok: bool, key: str = "unmet", **values: Any) -> Finding:
    """A finding of the exercise's own: ``key`` is one of its ``messages``, with its fields."""
    return {"case": case, "ok": bool(ok), "key": key, "values": values}


def expect_equal(case: str, got: Any, want: Any) -> Finding:
    """Exactly equal: tensors in shape, dtype and bits; lists, numbers and words by ``==``."""
    return expect_close(case, got, want)


def expect_close(case: str, got: Any, want: Any, *, atol: float = 0.0) -> Finding:
    """Equal within ``atol`` (absolute). ``want`` is a tensor, a number, a list or a word."""
    import torch

    if got is None and want is not None:
        return expect(case, False, "none")
    if isinstance(want, torch.Tensor):
        return _compare_tensors(case, got, want, atol)
    if isinstance(want, float) and isinstance(got, int | float):
        return expect(case, abs(got - want) <= atol, "value", got=_short(got), want=_short(want))
    return expect(case, bool(got == want), "value", got=_short(got), want=_short(want))


def expect_sent(
    case: str, seen: Measured, *, minimum: float, at_most: float = 1.05, key: str = "bytes"
) -> Finding:
    """The rank's collectives send at most ``at_most`` times ``minimum`` bytes."""
    sent = seen.sent()
    ratio = sent / minimum if minimum else float("inf") if sent else 1.0
    return expect(
        case,
        ratio <= at_most,
        key,
        got=human_bytes(sent),
        minimum=human_bytes(minimum),
        ratio=ratio,
        allowed=at_most,
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

    if not isinstance(got, torch.Tensor):
        return expect(case, False, "type", got=type(got).__name__, want="Tensor")
    if got.shape != want.shape:
        return expect(case, False, "shape", got=_shape(got), want=_shape(want))
    if got.dtype != want.dtype:
        return expect(case, False, "dtype", got=str(got.dtype), want=str(want.dtype))
    a, b = got.detach().cpu().flatten().double(), want.detach().cpu().flatten().double()
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


def _shape(tensor: Any) -> str:
    return str(tuple(tensor.shape))


def _human(value: float, unit: str) -> str:
    if unit == "bytes":
        return human_bytes(value)
    if unit == "s":
        return human_seconds(value)
    return f"{digits(value)}{'' if unit in ('', '%') else ' '}{unit}"


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
