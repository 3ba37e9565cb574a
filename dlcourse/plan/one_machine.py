"""The largest model that can be trained on a Mac and on GPUs, with more and more savings.

    largest("Mac 128 GB", savings=3)     # (name of the model, its parameters), or None
    largest_models(savings=3)            # a picture of all machines

The bytes are the planner's (``layout_memory.py``). For a Mac its whole unified memory is counted as
free, which it never is: so these are upper bounds. Offload moves bytes from a GPU's memory to its
host's; on a Mac both are one memory, and it frees nothing.

Sizes of Macs: Apple newsroom, "Apple introduces the new MacBook Air with the M4 chip" and "Apple
unveils new Mac Studio", 5 March 2025. Shape of Llama 2 13B: Touvron et al., 2023, and its
config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from dlcourse.figures.picture import Picture, bars
from dlcourse.plan.cluster import Cluster, cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_memory import memory
from dlcourse.plan.layouts import Layout, Layouts
from dlcourse.plan.model_shape import ModelShape, total_numbers
from dlcourse.words.strings import t

SEQUENCE, SEQUENCES = 2048, 4  # of a step on each device
# In the order of the lesson: each position of the slider switches on one more
SAVINGS = ("none", "bf16", "accumulate", "checkpoint", "zero3", "offload")
_AXIS = 28  # billions of parameters, where the picture's axis ends


@dataclass(frozen=True)
class Machine:
    """One Mac, or a node of GPUs.

    memory: bytes of a device.
    unified: the host's memory is the device's.
    """

    memory: float
    gpus: int = 1
    unified: bool = False

    def cluster(self) -> Cluster:
        if self.unified:  # nothing for the system, no allocator: an upper bound
            return cluster_of(
                "h100", gpus=1, memory=self.memory, context_bytes=0.0, fragmentation=0.0
            )
        return cluster_of("h100", gpus=self.gpus)


MACHINES: dict[str, Machine] = {
    "Mac 16 GB": Machine(16e9, unified=True),
    "Mac 32 GB": Machine(32e9, unified=True),
    "Mac 128 GB": Machine(128e9, unified=True),
    "Mac 512 GB": Machine(512e9, unified=True),
    "1 × H100": Machine(80e9),
    "8 × H100": Machine(80e9, gpus=8),
}


@cache
def models() -> dict[str, ModelShape]:
    """Those that are tried, small ones first."""
    seven = published_model("llama-2-7b")
    thirteen = replace(
        seven, name="llama-2-13b", layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824
    )
    names: tuple[str, ...] = ("gpt2-large", "llama-3.2-1b", "llama-3-8b", "gpt-neox-20b")
    names += ("llama-3-70b", "gpt-3-175b", "llama-3-405b")
    found = [*map(published_model, names), seven, thirteen]
    return {shape.name: shape for shape in sorted(found, key=total_numbers)}


def needed(machine: Machine, shape: ModelShape, savings: int) -> dict[str, float]:
    """Bytes of one device by category, with "total" and "host" (of the whole node).

    savings: how many of ``SAVINGS`` after the first are on, 0 to 5.
    """
    check_savings(savings)
    on = SAVINGS[1 : savings + 1]
    cluster = machine.cluster()
    job = Job(
        shape=shape,
        cluster=cluster,
        batch_tokens=SEQUENCES * SEQUENCE * machine.gpus,
        sequence=SEQUENCE,
        states="bf16" if "bf16" in on else "float32",
    )
    layout = Layout(
        data=machine.gpus,
        stage=3 if "zero3" in on and machine.gpus > 1 else 0,
        micro_batch=1 if "accumulate" in on else SEQUENCES,
        recompute="full" if "checkpoint" in on else "none",
        offload="optimizer" if "offload" in on else "none",
    )
    return {name: float(each[0]) for name, each in memory(job, Layouts.of([layout])).items()}


def fits(machine: Machine, shape: ModelShape, savings: int) -> bool:
    """Whether a step of this model can be taken there."""
    bytes_ = needed(machine, shape, savings)
    if machine.unified:
        return bytes_["total"] + bytes_["host"] <= machine.memory
    cluster = machine.cluster()
    return bytes_["total"] <= cluster.memory and bytes_["host"] <= cluster.host_memory


def largest(name: str, savings: int) -> tuple[str, int] | None:
    """The largest of ``models`` that fits on one of ``MACHINES``, and its parameters.

    Raises:
        ValueError: an unknown machine, or no such number of savings.
    """
    if name not in MACHINES:
        raise ValueError(f"name={name!r} is unknown: give one of {', '.join(MACHINES)}")
    check_savings(savings)
    fitting = [s for s in models().values() if fits(MACHINES[name], s, savings)]
    return (fitting[-1].name, total_numbers(fitting[-1])) if fitting else None


def moved_by_offload(name: str, model: str = "llama-2-7b") -> float:
    """Bytes that the last saving, offload, adds to (or, negative, takes from) all of its memory."""
    last = len(SAVINGS) - 1
    before, after = (needed(MACHINES[name], models()[model], n) for n in (last - 1, last))
    return after["total"] + after["host"] - before["total"] - before["host"]


def figures_of_e7() -> dict[str, float]:
    """What the planner derives for claim E7; GB, and billions of parameters that fit at most."""

    def billions(name: str, savings: int) -> float:
        found = largest(name, savings)
        return found[1] / 1e9 if found else 0.0

    seven = needed(MACHINES["Mac 128 GB"], models()["llama-2-7b"], 3)
    return {
        "seven": seven["total"] / 1e9,
        "mac16": billions("Mac 16 GB", 3),
        "mac128": billions("Mac 128 GB", 3),
        "mac512": billions("Mac 512 GB", 3),
        "h100": billions("1 × H100", 5),
        "eight": billions("8 × H100", 5),
    }


def check_savings(savings: int) -> None:
    if type(savings) is not int or not 0 <= savings < len(SAVINGS):
        raise ValueError(f"savings={savings!r}: give a whole number from 0 to {len(SAVINGS) - 1}")


def largest_models(savings: int) -> Picture:
    """For each machine a bar as long as the largest model that fits."""
    found = {name: largest(name, savings) for name in MACHINES}
    lengths: Mapping[str, float] = {n: (each[1] / 1e9 if each else 0) for n, each in found.items()}
    texts = {
        name: f"{each[1] / 1e9:.3g} B, {each[0]}" if each else t("one_machine.none")
        for name, each in found.items()
    }
    on = ", ".join(t(f"one_machine.{name}") for name in SAVINGS[1 : savings + 1])
    title = t(
        "one_machine.title" if savings else "one_machine.title.none",
        on=on,
        mac=texts["Mac 128 GB"],
        gpus=texts["8 × H100"],
    )
    return bars(lengths, title=title, axis=t("one_machine.axis"), limit=_AXIS, texts=texts)
