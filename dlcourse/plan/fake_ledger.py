"""The exact ledger of a training step of any size, on tensors that have shapes and no numbers.

    ledgers([Case(config, Recipe(checkpoint=True), sequences=8, block=1024)])

The loop of ``dlcourse.training.memory_anatomy`` runs as it is, for one step, as one rank of a fake
process group (``fake_group.py``). Bytes and FLOPs are exact; times mean nothing.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.plan.fake_group import fake_process_group, peak_rss_bytes


@dataclass(frozen=True)
class Case:
    """What to take a step of.

    Args:
        sequences: of a rank in a step.
        world_size: how many ranks there are; this is rank 0.
    """

    config: GPTConfig
    recipe: Recipe = field(default_factory=Recipe)
    sequences: int = 1
    block: int = 128
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.sequences < 1 or self.sequences % self.recipe.accumulate:
            raise ValueError(
                f"accumulate={self.recipe.accumulate} does not divide {self.sequences} sequences: "
                f"give a multiple of {self.recipe.accumulate}"
            )
        if self.block > self.config.block_size:
            raise ValueError(
                f"block={self.block} is longer than block_size={self.config.block_size}: "
                "give shorter sequences"
            )
        if self.world_size < 1:
            raise ValueError(f"world_size={self.world_size}: give the number of devices, from 1 on")


def measure(case: Case, process_group: Any = None) -> dict[str, Any]:
    """Take one step, whose optimizer has its state already.

    Args:
        process_group: without one, the process must have none. Where it has, as a rank does: a
            group of this rank alone, for a case of one rank.

    Returns:
        "memory" as in a record; "flops"; "sent" bytes of this rank, in theory; "passes";
        "seconds" of this machine, "cpu_seconds" of this process; "peak_rss_bytes" of it so far.
    """
    gc.collect()  # an earlier case
    started, cpu_started = time.perf_counter(), time.process_time()
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dlcourse.measure.recorder import Recorder
    from dlcourse.models.gpt import GPT
    from dlcourse.training.memory_anatomy import Training

    fake = fake_process_group(0, case.world_size) if process_group is None else nullcontext()
    with fake, FakeTensorMode(allow_non_fake_inputs=True):
        training = Training(GPT(case.config), case.recipe, process_group=process_group)
        _make_state(training.optimizer)
        tokens_BT = torch.zeros(case.sequences, case.block, dtype=torch.long)
        with Recorder(0, case.world_size) as recorder:
            training.step(tokens_BT, tokens_BT)
    record = recorder.record
    comm = [*record["comm"], *record["comm_rest"]]
    return {
        "memory": record["memory"],
        "flops": record["flops"],
        "sent": sum(wire_bytes(e["op"], e["bytes"], e["group_size"]) for e in comm),
        "passes": case.recipe.accumulate,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def ledgers(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Measure each case, in processes of their own: two where there are two cores.

    Raises:
        ValueError: no case.
        RuntimeError: a process died, most likely for lack of memory.
    """
    if not cases:
        raise ValueError("cases is empty: give at least one")
    count = min(2, len(cases), os.cpu_count() or 1)
    # They are forked from one that has torch, which stays for the next call: it is loaded once
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "dlcourse.training.memory_anatomy"])
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, mp_context=context, initializer=_prepare) as pool:
        try:
            futures = [pool.submit(measure, case) for case in cases]
            return [future.result() for future in futures]
        except BrokenProcessPool:
            raise RuntimeError(
                f"one of {count} processes was killed, most likely for lack of memory: give "
                "smaller sizes"
            ) from None
        except KeyboardInterrupt:  # or it would wait until they are done
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _make_state(optimizer: Any) -> None:
    """As a first step with gradients of zero does, in fewer operators."""
    import torch

    from dlcourse.training.mixed_precision.master_adamw import MasterAdamW

    for group in optimizer.param_groups:
        if isinstance(optimizer, MasterAdamW):
            for p in group["params"]:
                optimizer.make_state(p)
            continue
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
        group["foreach"] = True  # each operator once, for all tensors
    optimizer.step()
    for group in optimizer.param_groups:
        group["foreach"] = None
    optimizer.zero_grad()


def _prepare() -> None:
    """In each process, before its first case."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    gc.freeze()  # what is imported is no tensor: the ledger need not look through it
    gc.disable()  # a step leaves little garbage; looking for it takes a tenth of the time


def _end_with_parent() -> None:
    """A kernel that is killed cannot tell its processes; they would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
