"""Goodput for real, small: ranks are killed while they train, and go on from a checkpoint.

    with Ranks(4) as ranks:
        run = train_with_failures(ranks, steps=24, interval=4, mtbf_steps=8)
    run.useful, run.lost, run.failures, run.loss

Failures are imposed: a rank, drawn at random, sends itself SIGKILL in the middle of a step whose
number is drawn beforehand, as a machine would vanish. All the rest is as in a long run: the pool
notices, all ranks start anew, the checkpoint of ``dlcourse.parallel.zero_checkpoint`` is loaded,
and the steps since it are done again. Steps are counted by the ranks, in a file.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dlcourse.formulas.goodput import check_failures, check_interval, checkpointed_goodput
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.ranks.errors import RankError
from dlcourse.ranks.notebook.pool import Ranks

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32)
MICRO_BATCH = 4  # sequences of a rank in a step
LEAST = 0.1  # goodput below which a lesson would wait too long


@dataclass(frozen=True, kw_only=True)
class Survived:
    """What a run through failures has done, as the ranks counted it.

    Attributes:
        useful: steps of the run. executed: steps that were completed, again or not.
        failures: ranks that were killed. loss: of the last step, the mean of the ranks.
        checksum: of all parameters at the end. seconds: of the whole run.
    """

    useful: int
    executed: int
    failures: int
    loss: float
    checksum: float
    seconds: float

    @property
    def lost(self) -> int:
        """Steps that were completed and then done again."""
        return self.executed - self.useful


def moments_of_failure(mtbf_steps: float, *, seed: int = 0, count: int = 1000) -> list[float]:
    """Steps, and parts of them, from each start to the failure after it: exponential."""
    check_failures(mtbf=mtbf_steps)
    draw = random.Random(seed)
    return [draw.expovariate(1 / mtbf_steps) for _ in range(count)]


def foreseen(moments: Sequence[float], *, steps: int, interval: int) -> tuple[int, int, float]:
    """What these moments make of a run, without running it.

    Returns:
        Steps completed, failures, and the run's length in steps, cut ones as far as they came.
    """
    saved, executed, failures, length = 0, 0, 0, 0.0
    for moment in moments:
        done = int(moment)
        if saved + done >= steps:
            return executed + steps - saved, failures, length + steps - saved
        executed, failures, length = executed + done, failures + 1, length + moment
        saved = (saved + done) // interval * interval
    raise ValueError(f"steps={steps} are not done after {len(moments)} failures: fail less often")


def train_with_failures(
    ranks: Ranks,
    *,
    steps: int = 24,
    interval: int = 4,
    mtbf_steps: float | None = 8,
    seed: int = 0,
) -> Survived:
    """Train a small GPT by ZeRO 1 to its last step, however often a rank is killed.

    What the pool's ranks have defined is lost with the first that dies.

    Args:
        interval: steps between checkpoints.
        mtbf_steps: mean steps between failures; None for none.
        seed: of the moments and of the ranks that die.

    Raises:
        ValueError: an interval longer than the run, or failures so often that it hardly moves.
    """
    for name, value in (("steps", steps), ("interval", interval)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number of 1 or more steps")
    check_interval(interval, checkpoint=0, work=steps)
    moments = [float("inf")]
    if mtbf_steps is not None:
        moments = moments_of_failure(mtbf_steps, seed=seed)
        goodput = checkpointed_goodput(interval, checkpoint=0, mtbf=mtbf_steps)
        if goodput < LEAST:
            raise ValueError(
                f"mtbf_steps={mtbf_steps:g} with interval={interval}: {goodput:.1%} of the steps "
                "would count; give a shorter interval, or failures that are rarer"
            )
    draw, started = random.Random(seed + 1), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="dlcourse-goodput-") as folder:
        for failures, moment in enumerate(moments):
            dies_in = None if moment == float("inf") else int(moment)
            victim = draw.randrange(ranks.size)
            try:
                results = ranks.run(_train, folder, steps, interval, dies_in, victim)
            except RankError:
                if not Path(folder, "killed").exists():  # another fault than the imposed one
                    raise
                Path(folder, "killed").unlink()
                continue
            loss, checksum = results[0]
            executed = len(Path(folder, "steps").read_text().split())
            return Survived(
                useful=steps,
                executed=executed,
                failures=failures,
                loss=loss,
                checksum=checksum,
                seconds=time.perf_counter() - started,
            )
    raise ValueError(f"steps={steps} are not done after {len(moments)} failures")


def _train(
    path: str, steps: int, interval: int, dies_in: int | None, victim: int
) -> tuple[float, float]:
    """In a rank: from the newest checkpoint to the last step, or to this rank's death."""
    import torch
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.models.gpt import GPT
    from dlcourse.parallel.loop import mean_over_ranks
    from dlcourse.parallel.zero import ZeRO1
    from dlcourse.parallel.zero_checkpoint import load_checkpoint, save_checkpoint

    rank, world_size, folder = dist.get_rank(), dist.get_world_size(), Path(path)
    torch.manual_seed(0)
    model = ZeRO1(GPT(CONFIG))
    optimizer = torch.optim.AdamW(model.shards, lr=1e-3)
    newest = folder / "newest"
    first = int(newest.read_text()) if newest.exists() else 0
    if first:
        load_checkpoint(model, optimizer, folder / str(first))
    corpus, losses = Corpus(), []
    for number in range(first, steps):
        tokens_BT, targets_BT = corpus.batch(
            number,
            rank=rank,
            world_size=world_size,
            micro_batch=MICRO_BATCH,
            block=CONFIG.block_size,
        )
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        if rank == victim and number - first == dies_in:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        model.sync_gradients()
        optimizer.step()
        model.sync_parameters()
        losses.append(loss.item())
        if rank == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{number}\n")
        if (number + 1) % interval == 0:
            save_checkpoint(model, optimizer, folder / str(number + 1))
            if rank == 0:  # all have written: from here on this one counts
                before = newest.read_text() if newest.exists() else ""
                (folder / "newest.part").write_text(str(number + 1))
                (folder / "newest.part").replace(newest)
                if before:
                    shutil.rmtree(folder / before)
    loss_of_all = mean_over_ranks(losses[-1:], device=torch.device("cpu"))
    numbers = torch.cat([p.detach().double().flatten() for p in model.module.parameters()])
    return loss_of_all[0], float(numbers.norm())
