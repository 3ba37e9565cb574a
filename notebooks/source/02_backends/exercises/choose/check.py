"""The name of the backend, or backends, for a job."""

from dlcourse.course.exercises import describe, expect

NAMES = ("backend_for",)
CASES = ("cpu", "cuda", "both", "xpu", "all")
NUM_RANKS = 1
WHERE = "kernel"

_BEST = {"cpu": "gloo", "cuda": "nccl", "xpu": "xccl"}
_NOT_BUILT = ("mpi", "ucc")
_JOBS = {
    "cpu": ["cpu"],
    "cuda": ["cuda"],
    "both": ["cpu", "cuda"],
    "xpu": ["xpu", "cpu"],
    "all": ["cuda", "xpu", "cpu"],
}


def check(backend_for, rank, world_size):
    return [_judge(case, devices, backend_for(list(devices))) for case, devices in _JOBS.items()]


def _judge(case, devices, got):
    if not isinstance(got, str):
        return expect(case, False, "not_text", got=describe(got))
    chosen = _by_device(got.lower().replace(" ", ""), devices)
    if chosen is None:
        return expect(case, False, "unreadable", got=got)
    for device in devices:
        name = chosen.get(device)
        if name is None:
            return expect(case, False, "no_backend", device=device, got=got)
        if name in _NOT_BUILT:
            return expect(case, False, "not_built", name=name)
        if name == "gloo" and device == "cuda":
            return expect(case, False, "through_cpu", device=device)
        if name != _BEST[device]:
            return expect(case, False, "cannot", device=device, name=name)
    return expect(case, True)


def _by_device(text, devices):
    """Device -> backend, as torch reads "cpu:gloo,cuda:nccl" and "nccl"; None for neither."""
    if ":" not in text:  # a name alone serves the devices that it can
        serves = {"gloo": ("cpu", "cuda"), "nccl": ("cuda",), "xccl": ("xpu",)}
        serves |= dict.fromkeys(_NOT_BUILT, ("cpu", "cuda"))
        return dict.fromkeys(serves[text], text) if text in serves else None
    pairs = [pair.split(":") for pair in text.split(",")]
    return dict(pairs) if all(len(pair) == 2 and all(pair) for pair in pairs) else None
