"""The job of ``dlcourse.parallel.pipeline`` in ``torch.distributed.pipelining`` and DeepSpeed."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import pipelining

from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT
from dlcourse.parallel.divisibility import equal_part
from dlcourse.parallel.loop import run_steps
from dlcourse.parallel.pipeline_schedules import make_schedule
from dlcourse.parallel.pipeline_stages import Stage, split_layers
from dlcourse.peers import deepspeed_engine
from dlcourse.peers.comparison import timed

# Our name, and the class that runs the same order of actions or one with the same aim
CLASSES = {
    "gpipe": "ScheduleGPipe",
    "1f1b": "Schedule1F1B",
    "interleaved": "ScheduleInterleaved1F1B",
    "zb_h1": "ScheduleInterleavedZeroBubble",  # with one chunk a rank
    "zb_v": "ScheduleZBVZeroBubble",
    "dual_pipe_v": "ScheduleDualPipeV",
}


def mean_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of one micro-batch; torch's schedule divides the gradients by their number."""
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class TorchPipeline:
    """The same stages as ours in one of torch's schedules.

    Args:
        model: equal in all ranks.
        name: one of ``CLASSES``.

    Raises:
        ValueError: an unknown schedule, too few micro-batches, more stages than layers, or tied
            embeddings, whose gradients torch's pipeline does not add.
    """

    def __init__(
        self,
        model: GPT,
        name: str,
        num_micro_batches: int,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if model.config.tie_embeddings:
            raise ValueError(
                "tie_embeddings=True does not work in torch's pipeline, where the two copies of "
                "the matrix would drift apart: build the GPT with tie_embeddings=False"
            )
        rank, world_size = dist.get_rank(process_group), dist.get_world_size(process_group)
        ours = make_schedule(name, world_size, num_micro_batches)
        layers = split_layers(model.config.n_layer, ours.num_stages)
        mine = [ours.stage(rank, chunk) for chunk in range(ours.num_chunks)]
        device = next(model.parameters()).device
        self.modules = nn.ModuleList(Stage(model, layers[stage]) for stage in mine)
        stages = [
            pipelining.PipelineStage(module, stage, ours.num_stages, device, group=process_group)
            for module, stage in zip(self.modules, mine, strict=True)
        ]
        make = getattr(pipelining.schedules, CLASSES[name])
        alone = name in ("gpipe", "1f1b")
        self.schedule = make(stages[0] if alone else stages, num_micro_batches, loss_fn=mean_loss)
        self.is_first, self.is_last = 0 in mine, ours.num_stages - 1 in mine
        self.last_rank = ours.where(ours.num_stages - 1)[0]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of this rank's stages."""
        return self.modules.parameters()

    def step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward and backward of a batch. Returns its mean loss in the last stage, 0 elsewhere."""
        losses: list[Tensor] = []
        options = dict(target=targets_BT, losses=losses) if self.is_last else {}
        inputs = [tokens_BT] if self.is_first else []
        self.schedule.step(*inputs, return_outputs=False, **options)
        return torch.stack(losses).mean().detach() if losses else torch.zeros(())


class DeepSpeedPipeline:
    """The same stages in DeepSpeed's pipeline engine, whose only schedule is 1F1B.

    Args:
        model: equal in all ranks, with ``tie_embeddings=False``.
        batch_size: sequences of a step, over all micro-batches.

    Raises:
        ValueError: DeepSpeed is not installed, or the micro-batches do not divide the batch.
    """

    def __init__(
        self, model: GPT, num_micro_batches: int, *, batch_size: int, lr: float = 1e-3
    ) -> None:
        if not deepspeed_engine.is_installed():
            raise ValueError("DeepSpeed is not installed here: install the extra 'peers'")
        size = equal_part("batch_size", batch_size, num_micro_batches)
        rank, world_size = dist.get_rank(), dist.get_world_size()
        deepspeed_engine.start(next(model.parameters()).device.type)
        from deepspeed.pipe import PipelineModule

        # It would build every layer's parameters in every rank, if it were given them all
        layers: list[nn.Module] = [nn.Identity() for _ in range(world_size)]
        layers[rank] = Stage(model, split_layers(model.config.n_layer, world_size)[rank])
        with contextlib.redirect_stdout(io.StringIO()):  # it lists its layers
            net = PipelineModule(
                layers, num_stages=world_size, loss_fn=mean_loss, partition_method="uniform"
            )
        config = {
            "train_micro_batch_size_per_gpu": size,
            "gradient_accumulation_steps": num_micro_batches,
        }
        self.num_micro_batches = num_micro_batches
        self.engine = deepspeed_engine.engine(net, config, lr=lr)

    def train_step(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Forward, backward and AdamW. Returns the batch's mean loss, in every rank."""
        m = self.num_micro_batches
        parts = zip(tokens_BT.chunk(m), targets_BT.chunk(m), strict=True)
        return self.engine.train_batch(iter(parts))


def train(
    model: GPT,
    corpus: Corpus,
    *,
    schedule: str = "1f1b",
    num_micro_batches: int = 8,
    steps: int,
    batch_size: int = 16,
    block: int = 128,
    lr: float = 1e-3,
) -> dict[str, list[float]]:
    """Train ``model`` in torch's pipeline. Arguments as in ``dlcourse.parallel.pipeline.train``.

    Returns:
        ``losses``: of each step over the whole batch, in every rank. ``step_seconds``: wall time.
    """
    pipeline = TorchPipeline(model, schedule, num_micro_batches)
    optimizer = torch.optim.AdamW(pipeline.parameters(), lr=lr)
    device = next(pipeline.parameters()).device
    seconds: list[float] = []

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor | None:
        optimizer.zero_grad()
        loss = pipeline.step(tokens_BT, targets_BT)
        optimizer.step()
        return loss if pipeline.is_last else None

    losses = run_steps(
        timed(step, seconds),
        corpus,
        steps=steps,
        micro_batch=batch_size,
        block=block,
        device=device,
        counts=pipeline.is_last,
    )
    of_last_rank = torch.tensor(losses, device=device)
    dist.broadcast(of_last_rank, src=pipeline.last_rank)
    return {"losses": of_last_rank.tolist(), "step_seconds": seconds}
