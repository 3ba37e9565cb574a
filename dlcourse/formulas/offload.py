"""When things happen in a step of a model part of which lives on the host: what waits for what.

Four things are busy, each with one piece of work at a time: the device, the line out to the host,
the host, and the line back. All blocks are alike here, so that one idea is left. Three ways:

    optimizer     gradients go out, the host takes Adam's step, parameters come back
    parameters    as well: each block's parameters are fetched for forward and for backward
    layers        the last blocks are computed on the host: only activations travel

Sources: Ren et al., "ZeRO-Offload", USENIX ATC 2021, section 4; Rajbhandari et al.,
"ZeRO-Infinity", SC 2021, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WAYS = ("optimizer", "parameters", "layers")
LANES = ("device", "out", "host", "back")
Span = tuple[float, float, str]  # start, end, what: a category, or "forward", or "backward"


@dataclass(frozen=True)
class OffloadJob:
    """Equal blocks, a device, a host and a line between them; the default is lesson 12's.

    Attributes:
        blocks: how many.
        forward, backward: seconds of one block on the device.
        nbytes: of one block's parameters, and of its gradients.
        rest: bytes of what is in no block; it stays on the device, and its state does not.
        stream: bytes of the activations between two blocks.
        update: seconds of Adam on the host for one block, and for the rest.
        slower: times as long as on the device takes a block on the host.
        on_host: blocks that the host computes, where layers are divided.
        latency, bandwidth: of the line, in seconds and bytes a second each way.
    """

    blocks: int = 8
    forward: float = 0.010
    backward: float = 0.020
    nbytes: float = 4 * (12 * 64**2 + 10 * 64)
    rest: float = 4 * ((2 * 256 + 32) * 64 + 2 * 64)
    stream: float = 4 * 2 * 32 * 64
    update: float = 0.010
    slower: float = 10.0
    on_host: int = 2
    latency: float = 0.001
    bandwidth: float = 10e6


@dataclass
class Step:
    """A step as it was drawn up: for each lane its spans."""

    lanes: dict[str, list[Span]] = field(default_factory=lambda: {name: [] for name in LANES})

    def add(self, lane: str, ready: float, seconds: float, what: str) -> float:
        """Put work at the end of a lane, not before it is ready; when it ends."""
        spans = self.lanes[lane]
        start = max(ready, spans[-1][1] if spans else 0.0)
        if seconds > 0:
            spans.append((start, start + seconds, what))
        return start + max(seconds, 0.0)

    @property
    def seconds(self) -> float:
        return max(span[1] for spans in self.lanes.values() for span in spans)

    def busy(self, lane: str) -> float:
        """Seconds at work."""
        return sum(end - start for start, end, _ in self.lanes[lane])


def offloaded_step(job: OffloadJob, way: str, *, overlap: bool = True) -> Step:
    """What happens when.

    Args:
        way: one of ``WAYS``.
        overlap: gradients leave while backward goes on, and the next block's parameters come while
            this one computes; without, each move is waited for.

    Raises:
        ValueError: an unknown way.
    """
    if way not in WAYS:
        raise ValueError(f"way={way!r} is unknown: give one of {', '.join(WAYS)}")
    if way == "layers":
        return _layers(job)
    return (_optimizer if way == "optimizer" else _parameters)(job, overlap)


def moved_bytes(job: OffloadJob, way: str) -> tuple[float, float]:
    """Bytes that go out and come back in a step."""
    blocks, rest = job.blocks * job.nbytes, job.rest
    if way == "layers":
        return job.stream, job.stream
    again = blocks if way == "parameters" else 0.0
    return blocks + rest, blocks + rest + again


def _travel(job: OffloadJob, nbytes: float) -> float:
    return job.latency + nbytes / job.bandwidth if nbytes else 0.0


def _optimizer(job: OffloadJob, overlap: bool) -> Step:
    step, now, made = Step(), 0.0, []
    for _ in range(job.blocks):
        now = step.add("device", now, job.forward, "forward")
    for _ in range(job.blocks):
        now = step.add("device", now, job.backward, "backward")
        made.append((now, job.nbytes))
    for ready, nbytes in [*made, (now, job.rest)]:
        here = _travel(job, nbytes)
        out = step.add("out", ready if overlap else now, here, "gradients")
        done = step.add("host", out, job.update if nbytes else 0.0, "optimizer_state")
        back = step.add("back", done, here, "parameters")
        now = now if overlap else back
    return step


def _parameters(job: OffloadJob, overlap: bool) -> Step:
    step, now, before, here = Step(), 0.0, 0.0, _travel(job, job.nbytes)
    for seconds, what in ((job.forward, "forward"), (job.backward, "backward")):
        for _ in range(job.blocks):
            fetched = step.add("back", before if overlap else now, here, "parameters")
            before = max(now, fetched)  # the next one is fetched while this one computes
            now = step.add("device", before, seconds, what)
            if what == "backward":
                out = step.add("out", now, here, "gradients")
                step.add("host", out, job.update, "optimizer_state")
                now = now if overlap else out
    rest = _travel(job, job.rest)
    out = step.add("out", now, rest, "gradients")
    done = step.add("host", out, job.update if job.rest else 0.0, "optimizer_state")
    step.add("back", done, rest, "parameters")
    return step


def _layers(job: OffloadJob) -> Step:
    step, now, here = Step(), 0.0, _travel(job, job.stream)
    on_device = job.blocks - job.on_host
    for _ in range(on_device):
        now = step.add("device", now, job.forward, "forward")
    now = step.add("out", now, here, "activations")
    for seconds, what in ((job.forward, "forward"), (job.backward, "backward")):
        for _ in range(job.on_host):
            now = step.add("host", now, seconds * job.slower, what)
    now = step.add("back", now, here, "gradients")
    for _ in range(on_device):
        now = step.add("device", now, job.backward, "backward")
    return step
