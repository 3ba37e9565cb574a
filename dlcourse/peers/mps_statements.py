"""What is true of training on a Mac's GPU (torch's device "mps"), since when, and how it was found.

    for statement in statements(): print(statement.name, statement.since, statement.how)

Nothing about a Mac is imitated elsewhere. What can be read in the source of the torch and the
DeepSpeed that are installed is read there, each time: `check` says whether it still stands. What
only a Mac can tell is told by a Mac (``on_this_mac``), or said to need one.

Sources: torch pull requests 99272 (autocast, float16), 139390 (bfloat16); Accelerate pull request
3373 (which release has what); DeepSpeed pull requests 3907, 7767, 8293 (stub, stage 0, stages 1 to
3); Apple newsroom, 10 November 2020, "Apple unleashes M1"; coremltools guide, "Compute units".
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist

from dlcourse.corpus import Corpus
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.models.gpt import GPT
from dlcourse.training.by_hand import prepare, take_step

_CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
SOURCE, DOCUMENT, HERE, MAC = "source", "document", "here", "mac"  # how something was found


@dataclass(frozen=True)
class Statement:
    """One row.

    name: key of its words. since: version or date, "" where there is none.
    how: one of the four above. stands: what the check says here; None where nothing can be checked.
    """

    name: str
    since: str
    how: str
    stands: bool | None = None


def statements() -> list[Statement]:
    """All of them, checked now."""
    checks: list[tuple[str, str, str, Callable[[], bool | None] | None]] = [
        ("autocast_fp16", "torch 2.5", DOCUMENT, lambda: torch.amp.is_autocast_available("mps")),
        ("autocast_bf16", "torch 2.6, macOS 14", DOCUMENT, None),
        ("scaler", "torch 2.8", SOURCE, scaler_knows_mps),
        ("cuda_scaler", f"torch {_torch()}", HERE, cuda_scaler_is_off),
        ("collectives", f"torch {_torch()}", SOURCE, lambda: "mps" not in gloo_devices()),
        ("deepspeed_one", _deepspeed("2026-08"), SOURCE, lambda: _in_deepspeed(*_ONE_DEVICE)),
        ("deepspeed_staged", _deepspeed("2026-08"), SOURCE, lambda: _in_deepspeed(*_STAGED)),
        ("pin_memory", _deepspeed("2026-08"), SOURCE, lambda: _in_deepspeed(*_PINNED)),
        ("peak", _deepspeed("2026-08"), SOURCE, lambda: _in_deepspeed(*_PEAK)),
        ("unified", "2020-11", DOCUMENT, None),
        ("copy", "", MAC, (lambda: not on_this_mac()["same_address"]) if _has_mps() else None),
        ("neural_engine", f"torch {_torch()}", HERE, no_neural_engine),
    ]
    return [Statement(name, since, how, check and check()) for name, since, how, check in checks]


def gloo_devices() -> list[str]:
    """The devices that Gloo says it serves, by torch's own table."""
    return list(dist.Backend.backend_capability["gloo"])


def scaler_knows_mps() -> bool:
    """torch.amp.GradScaler has a branch for "mps" in its source."""
    return "mps" in inspect.getsource(torch.amp.grad_scaler)


def cuda_scaler_is_off() -> bool | None:
    """torch.cuda.amp.GradScaler, made where no CUDA is, switches itself off. None with CUDA."""
    if torch.cuda.is_available():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it is deprecated, and off
        return not torch.cuda.amp.GradScaler().is_enabled()


def no_neural_engine() -> bool:
    """torch has no device of that name; what it calls "mps" is the GPU."""
    for name in ("ane", "neural_engine", "coreml"):
        try:
            torch.device(name)
        except RuntimeError:
            continue
        return False
    return True


# Files of DeepSpeed, and lines that they hold
_ACCELERATOR = "accelerator/mps_accelerator.py"
_ONE_DEVICE = (_ACCELERATOR, ("def device_count(self):\n        return 1",))
_STAGED = ("comm/torch.py", ("def stage_on_cpu", "tensor.device.type == 'mps'"))
_PINNED = (_ACCELERATOR, ("def _torch_pin_memory(self, tensor):\n        return tensor",))
_PEAK = (
    _ACCELERATOR,
    (
        "def max_memory_allocated(self, device_index=None):\n"
        "        return torch.mps.driver_allocated_memory()",
        "def reset_peak_memory_stats(self, device_index=None):\n        return\n",
    ),
)


def _in_deepspeed(file: str, lines: tuple[str, ...]) -> bool | None:
    """Whether a file of the installed DeepSpeed holds all of these; None without DeepSpeed."""
    spec = find_spec("deepspeed")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / file
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return all(line in text for line in lines)


def _torch() -> str:
    return torch.__version__.partition("+")[0]


def _deepspeed(merged: str) -> str:
    from importlib.metadata import version

    installed = f" ({version('deepspeed')})" if find_spec("deepspeed") else ""
    return f"DeepSpeed {merged}{installed}"


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def on_this_mac(megabytes: int = 64) -> dict[str, float]:
    """Copy a tensor from "cpu" to "mps": whether the address stays, and bytes a second.

    And the losses by hand on both, with bf16, checkpoints and accumulation. Written for a Mac and
    not run on one yet.

    Raises:
        ValueError: there is no MPS device.
    """
    if not _has_mps():
        raise ValueError("torch sees no Apple GPU here: run it on a Mac with Apple silicon")
    x = torch.ones(megabytes * 2**18)
    y = x.to("mps")
    torch.mps.synchronize()
    start = time.perf_counter()
    for _ in range(10):
        y = x.to("mps")
    torch.mps.synchronize()
    seconds = (time.perf_counter() - start) / 10
    found = {"same_address": x.data_ptr() == y.data_ptr(), "bytes_per_second": x.nbytes / seconds}
    for device in ("cpu", "mps"):
        model, optimizer = prepare(GPT(_CONFIG).to(device), bf16=True, checkpoint=True)
        halves = Corpus().batch(0, micro_batch=8, block=16)
        batch = (halves[0].to(device), halves[1].to(device))
        take_step(model, optimizer, batch, accumulate=2)
        found[device] = take_step(model, optimizer, batch, accumulate=2).item()
    return found


def this_mac() -> dict[str, float] | None:
    """`on_this_mac`, or None where there is no Mac."""
    return on_this_mac() if _has_mps() else None
