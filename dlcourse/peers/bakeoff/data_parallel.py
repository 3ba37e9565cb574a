"""One process, and data parallelism: what the user of each library writes.

Each function here is counted, line by line. The model is the same in all ranks, and ``job`` says
how much to train; what comes back is one training step.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import AdamW

from dlcourse.models.gpt import GPT
from dlcourse.peers.bakeoff.job import Job, Step


def one_process(model: nn.Module, job: Job) -> Step:
    """The usual step, without any library: what all the others start from."""
    optimizer = AdamW(model.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def ddp(model: GPT, job: Job) -> Step:
    """torch's DistributedDataParallel."""
    from torch.nn.parallel import DistributedDataParallel

    ddp = DistributedDataParallel(model)
    optimizer = AdamW(ddp.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = ddp(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def horovod(model: GPT, job: Job) -> Step:
    """Horovod: its optimizer all-reduces, so the model stays what it was."""
    import horovod.torch as hvd

    hvd.init()
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(
        AdamW(model.parameters(), lr=job.lr), named_parameters=model.named_parameters()
    )

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = model(tokens_BT, targets_BT)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def accelerate(model: GPT, job: Job) -> Step:
    """Accelerate, which wraps the model in DDP itself."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    prepared, optimizer = accelerator.prepare(model, AdamW(model.parameters(), lr=job.lr))

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = prepared(tokens_BT, targets_BT)
        accelerator.backward(loss)
        optimizer.step()
        return loss.detach()

    return step
