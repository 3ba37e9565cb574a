"""What a configuration switches on, whatever nonsense stands beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

_ON = ("true", "1", "yes", "on", "y", "t")  # texts that pydantic takes for True


@dataclass(frozen=True)
class Settings:
    """A configuration with a number of ranks. Each property is None or False where it is not set.

    world_size: ranks; None where nobody has said how many.
    """

    config: dict[str, Any]
    world_size: int | None = None

    def block(self, path: str) -> dict[str, Any]:
        """The block of this path; empty where there is none."""
        found: Any = self.config
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def fp16(self) -> bool:
        return is_on(self.block("fp16").get("enabled"))

    @property
    def bf16(self) -> bool:
        name = "bf16" if self.config.get("bf16") is not None else "bfloat16"
        return is_on(self.block(name).get("enabled"))

    @property
    def autocast(self) -> bool:
        return is_on(self.block("torch_autocast").get("enabled"))

    @property
    def autocast_dtype(self) -> str | None:
        """ "bfloat16" or "float16" where torch_autocast is on, else None."""
        given = str(self.block("torch_autocast").get("dtype", "bfloat16")).rpartition(".")[2]
        half = given in ("float16", "fp16", "half")
        return ("float16" if half else "bfloat16") if self.autocast else None

    @property
    def zero(self) -> dict[str, Any]:
        """The block zero_optimization."""
        return self.block("zero_optimization")

    @property
    def stage(self) -> int | None:
        """Of ZeRO; None where what is given is no stage."""
        zero = self.config.get("zero_optimization")
        if isinstance(zero, bool):
            return int(zero)
        given = self.block("zero_optimization").get("stage", 0)
        value = 0 if given == "auto" else number(given)
        return int(value) if value in (0, 1, 2, 3) else None

    def offload(self, what: str) -> str:
        """ "none", "cpu" or "nvme", of "optimizer" or "param"."""
        zero = self.block("zero_optimization")
        old = {"optimizer": "cpu_offload", "param": "cpu_offload_param"}[what]
        device = self.block(f"zero_optimization.offload_{what}").get("device", "none")
        if device == "none" and is_on(zero.get(old)):
            return "cpu"
        return device if device in ("cpu", "nvme") else "none"

    @property
    def offloads_shards(self) -> bool:
        """Whether the code by hand keeps ZeRO-3's shards in the host's memory.

        Stages below 3 ignore ``offload_param``; fp16's scaler looks for infinities on the device.
        """
        return self.stage == 3 and self.offload("param") != "none" and not self.fp16

    @property
    def optimizer(self) -> str | None:
        """The type in small letters."""
        kind = self.block("optimizer").get("type")
        return kind.lower() if isinstance(kind, str) else None


def is_on(value: Any) -> bool:
    """As pydantic reads a switch: True, 1 or "true"."""
    if isinstance(value, str):
        return value.lower() in _ON
    return value is True or (isinstance(value, int | float) and value == 1)


def number(value: Any) -> float | None:
    """A finite number, or None: also for True and for texts that are no number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
