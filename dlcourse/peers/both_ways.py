"""The same step by configuration (DeepSpeed) and by hand, measured one beside the other.

    found = measure(("zero3",), config=GPTConfig(...), batch=64, block=16)
    found["deepspeed"]["loss"], found["by_hand"]["loss"]

Both get the same weights and the same sequences; both clip at a norm of 1.0 and use torch's AdamW.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from dlcourse.corpus import Corpus, sequences_per_rank
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.models.gpt import GPT
from dlcourse.peers import deepspeed_engine, deepspeed_job
from dlcourse.peers.comparison import Step, compare_steps
from dlcourse.training import by_hand
from dlcourse.training.accumulation import split
from dlcourse.training.sharding_offload.zero3_offload import OffloadedZeRO3

CLIP = 1.0
# Rows of the lesson: what is switched on, and micro-batches of a rank
ROWS: dict[str, tuple[tuple[str, ...], int]] = {
    "none": ((), 1),
    "accumulate": ((), 2),
    "bf16": (("bf16",), 1),
    "block": (("checkpoint",), 1),  # the JSON's block, and no code
    "checkpoint": (("checkpoint",), 1),
    "zero3": (("zero3",), 1),
    "offload": (("zero3", "offload"), 1),
    "offload_param": (("zero3", "offload", "offload_param"), 1),
    "all": (("bf16", "checkpoint", "zero3", "offload", "offload_param"), 2),
}


def measure(row: str, *, config: GPTConfig, batch: int, block: int, turns: int = 2) -> dict:
    """One of ``ROWS``, both ways, in all ranks.

    Args:
        batch: sequences of a step, of all ranks together.
        turns: timed steps of each way, in turns.

    Returns:
        "deepspeed" and "by_hand", each as ``compare_steps`` has it, "ratio" being the time of that
        way over DeepSpeed's. By hand also "moved", bytes to the host and back in a step, and
        "on_host", of "memory" what stays in the host's between steps, by category. Without
        DeepSpeed only "by_hand", without a ratio. There is no
        "by_hand" for "block": by hand nothing is switched on without code.

    Raises:
        ValueError: an unknown row, or ranks and micro-batches that do not divide the batch.
    """
    if row not in ROWS:
        raise ValueError(f"row={row!r} is unknown: give one of {', '.join(ROWS)}")
    savings, accumulate = ROWS[row]
    world_size = dist.get_world_size()
    mine = sequences_per_rank(batch, world_size=world_size, accumulate=accumulate)
    device = _device()
    sequences = Corpus().batch(
        0, rank=dist.get_rank(), world_size=world_size, micro_batch=mine, block=block
    )
    tokens_BT, targets_BT = (half.to(device) for half in sequences)

    def deepspeed() -> Step:
        json = deepspeed_job.config_of(*savings, batch=batch, micro_batch=mine // accumulate)
        wrap = "checkpoint" in savings and row != "block"
        step = deepspeed_job.training_step(GPT(config).to(device), json, wrap=wrap)
        return lambda: step(tokens_BT, targets_BT)

    moved: list[int] = []  # in each step, to the host and back
    on_host: dict[str, int] = {}

    def hand() -> Step:
        model, optimizer = by_hand.prepare(GPT(config).to(device), **dict.fromkeys(savings, True))
        mover = model if isinstance(model, OffloadedZeRO3) else optimizer

        def step() -> torch.Tensor:
            before = getattr(mover, "moved_bytes", 0)
            batch = (tokens_BT, targets_BT)
            loss = by_hand.take_step(model, optimizer, batch, accumulate=accumulate, clip=CLIP)
            moved.append(getattr(mover, "moved_bytes", 0) - before)
            on_host.update(held_by_host(model, optimizer))
            return loss

        return step

    found: dict[str, Any] = {}
    reference = None
    if deepspeed_engine.is_installed():
        kept, make = _kept(deepspeed)
        found["deepspeed"] = compare_steps(make)
        reference = kept[0]
    if row != "block":
        found["by_hand"] = compare_steps(hand, reference, turns=turns)
        found["by_hand"] |= {"moved": moved[-1], "on_host": on_host}
    return found


def held_by_host(model: torch.nn.Module, optimizer: Any) -> dict[str, int]:
    """Bytes that the savings by hand keep in the host's memory between steps, by category.

    On a CPU the ledger counts both memories as one; here is what of it a GPU would not hold.
    """
    held: dict[str, list[torch.Tensor]] = {"parameters": [], "optimizer_state": []}
    if isinstance(model, OffloadedZeRO3):
        held["parameters"] += model.shards
    if isinstance(optimizer, by_hand.HostAdamW):
        held["parameters"] += optimizer.masters
        for state in optimizer.adam.state.values():
            held["optimizer_state"] += state.values()
    return {name: sum(tensor.nbytes for tensor in some) for name, some in held.items()}


def _kept(make: Callable[[], Step]) -> tuple[list[Step], Callable[[], Step]]:
    """``make``, which also leaves what it has made in a list."""
    made: list[Step] = []

    def and_keep() -> Step:
        made.append(make())
        return made[0]

    return made, and_keep


def _device() -> torch.device:
    """Where collectives of the process group run."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def trained(
    step: Callable[..., None], *made: Any, config: GPTConfig, batch: int, block: int, steps: int = 3
) -> list[float]:
    """Take steps with a loop of the lesson; the loss before each, over all ranks.

    Args:
        step: ``step(*made, parts)``; ``parts`` are two micro-batches of this rank.
        made: a model first, called as ``model(tokens, targets)``, then what the step needs.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = sequences_per_rank(batch, world_size=world_size, accumulate=2)
    corpus, losses = Corpus(), []
    options: dict[str, Any] = {"rank": rank, "world_size": world_size, "micro_batch": mine}
    for number in range(steps):
        halves = corpus.batch(number, block=block, **options)
        tokens, targets = (half.to(_device()) for half in halves)
        with torch.no_grad():
            loss = made[0](tokens, targets).detach() / world_size
        dist.all_reduce(loss)
        losses.append(loss.item())
        step(*made, split(tokens, targets, accumulate=2))
    return losses


def micro_batches(*, batch: int, micro_batch: int) -> int:
    """What DeepSpeed makes of two sizes, in these ranks. Call it in all of them.

    Raises:
        ValueError: DeepSpeed is not installed.
        AssertionError: DeepSpeed's own, where nothing whole is left.
    """
    if not deepspeed_engine.is_installed():
        raise ValueError(
            "nothing derives the number of accumulation steps: DeepSpeed is not installed; install "
            "the extra 'peers'"
        )
    config = deepspeed_job.config_of(batch=batch, micro_batch=micro_batch)
    try:
        step = deepspeed_job.training_step(GPT(GPTConfig(n_layer=1, n_embd=8, n_head=1)), config)
    except AssertionError as error:  # said without the ten frames between here and there
        raise AssertionError(str(error)) from None
    return int(step.engine.gradient_accumulation_steps())  # type: ignore[attr-defined]


def what_zero3_leaves(config: GPTConfig, *, batch: int, block: int) -> dict[str, int]:
    """What a loop that looks at parameters finds under DeepSpeed's ZeRO-3, after a backward.

    Returns:
        "parameters", and of them "empty" (no element) and "without_gradient"; "elements" that the
        model has in truth, and "seen" by ``p.numel()``.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = sequences_per_rank(batch, world_size=world_size)
    json = deepspeed_job.config_of("zero3", batch=batch, micro_batch=mine)
    step = deepspeed_job.training_step(GPT(config).to(_device()), json)
    engine = step.engine  # type: ignore[attr-defined]
    tokens, targets = Corpus().batch(
        0, rank=rank, world_size=world_size, micro_batch=mine, block=block
    )
    engine.backward(engine(tokens.to(_device()), targets.to(_device())))
    parameters = list(engine.module.parameters())
    return {
        "parameters": len(parameters),
        "empty": sum(p.numel() == 0 for p in parameters),
        "without_gradient": sum(p.grad is None for p in parameters),
        "elements": sum(p.ds_numel for p in parameters),
        "seen": sum(p.numel() for p in parameters),
    }


def scales(overflows: Sequence[bool], *, power: int = 16) -> dict[str, list[float]]:
    """The loss scale after each step, for the same infinities: DeepSpeed's, torch's and ours.

    DeepSpeed's with the defaults of its fp16 block. It needs no GPU: only the rule is asked.
    """
    from dlcourse.training.mixed_precision.loss_scaler import LossScaler

    found: dict[str, list[float]] = {}
    if deepspeed_engine.is_installed():
        deepspeed_engine.start(_device().type)
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
        from deepspeed.runtime.precision_config import DeepSpeedFP16Config

        block = DeepSpeedFP16Config(enabled=True, initial_scale_power=power)
        theirs = DynamicLossScaler(
            init_scale=2.0**block.initial_scale_power,
            scale_window=block.loss_scale_window,
            min_scale=block.min_loss_scale,
            delayed_shift=block.hysteresis,
            consecutive_hysteresis=block.consecutive_hysteresis,
        )
        found["DeepSpeed"] = []
        for overflow in overflows:
            theirs.update_scale(overflow)
            found["DeepSpeed"].append(theirs.cur_scale)
    scalers: dict[str, Any] = {
        "torch": torch.amp.GradScaler("cpu", init_scale=2.0**power),
        "by_hand": LossScaler(2.0**power),
    }
    for name, scaler in scalers.items():
        p = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([p], lr=0.0)
        found[name] = []
        for overflow in overflows:
            scaler.scale(p.sum())
            p.grad = torch.tensor([float("inf") if overflow else 1.0])
            scaler.step(optimizer)
            scaler.update()
            found[name].append(float(scaler.get_scale()))
    return found


def first_steps(config: GPTConfig, *, batch: int, block: int) -> dict[str, float]:
    """Seconds from nothing to the end of a first step, imports included. In fresh ranks only."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mine = sequences_per_rank(batch, world_size=world_size)
    options: dict[str, Any] = {"rank": rank, "world_size": world_size, "micro_batch": mine}
    tokens, targets = (h.to(_device()) for h in Corpus().batch(0, block=block, **options))
    start = time.perf_counter()
    model, optimizer = by_hand.prepare(GPT(config).to(_device()), zero3=True)
    by_hand.take_step(model, optimizer, (tokens, targets), clip=CLIP)
    found = {"by_hand": time.perf_counter() - start}
    if deepspeed_engine.is_installed():
        start = time.perf_counter()
        json = deepspeed_job.config_of("zero3", batch=batch, micro_batch=mine)
        deepspeed_job.training_step(GPT(config).to(_device()), json)(tokens, targets)
        found["deepspeed"] = time.perf_counter() - start
    return found


# Mistakes: what is added to a good JSON, and the like by hand
MISTAKES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "name": ({"zero_optimisation": {"stage": 3}}, {"zero_3": True}),
    "name_inside": ({"bf16": {"enable": True}}, {"bf_16": True}),
    "divide": ({"train_micro_batch_size_per_gpu": 48}, {"accumulate": 3}),
    "not_wrapped": ({"activation_checkpointing": {"partition_activations": False}}, {}),
}


def mistakes(config: GPTConfig) -> dict[str, dict[str, str]]:
    """What each way says to each of ``MISTAKES``: its message, or "" where nothing is said.

    A by-hand entry without arguments has nothing that could be forgotten: it is left out.
    """
    found: dict[str, dict[str, str]] = {}
    batch = 32 * dist.get_world_size()
    for name, (json, arguments) in MISTAKES.items():
        found[name] = {}
        if deepspeed_engine.is_installed():
            good = deepspeed_job.config_of(batch=batch, micro_batch=16)

            def configured(good: dict = good | json) -> None:
                deepspeed_job.training_step(GPT(config).to(_device()), good)

            found[name]["deepspeed"] = _message(configured)
        if arguments:
            found[name]["by_hand"] = _message(partial(_prepared, config, arguments))
    return found


def _prepared(config: GPTConfig, given: dict[str, Any]) -> None:
    accumulate = given.get("accumulate", 1)
    options = {name: value for name, value in given.items() if name != "accumulate"}
    model, optimizer = by_hand.prepare(GPT(config).to(_device()), **options)
    batch = torch.zeros(2, 32, config.block_size, dtype=torch.long, device=_device())
    by_hand.take_step(model, optimizer, (batch[0], batch[1]), accumulate=accumulate)


def _message(action: Callable[[], None]) -> str:
    try:
        action()
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "validation error" in lines[0]:  # pydantic: the key, then what is wrong with it
            lines = [f"{lines[1]}: {lines[2].partition(' [')[0]}"]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def refusal_of_fp16(config: GPTConfig) -> str:
    """What DeepSpeed says to its fp16 block on this device; "" where it takes it or is not here.

    It takes a CPU whose instructions compute in float16 (AVX512-FP16).
    """
    if not deepspeed_engine.is_installed() or _device().type != "cpu":
        return ""
    json = deepspeed_job.config_of(batch=32 * dist.get_world_size(), micro_batch=32)
    json |= {"fp16": {"enabled": True, "auto_cast": True, "initial_scale_power": 16}}

    def configured() -> None:
        deepspeed_job.training_step(GPT(config), json)

    return _message(configured)
