"""Tensor and pipeline parallelism: what the user of each library writes. See `data_parallel.py`."""

from __future__ import annotations

from torch import Tensor
from torch.optim import AdamW

from dlcourse.models.gpt import GPT
from dlcourse.peers import pipeline_parallel, tensor_parallel
from dlcourse.peers.bakeoff.data_parallel import one_process
from dlcourse.peers.bakeoff.job import Job, Step


def dtensor(model: GPT, job: Job) -> Step:
    """torch's DTensor: a plan says how each layer of a block is cut."""
    return one_process(tensor_parallel.tensor_parallel(model), job)


def megatron(model: GPT, job: Job) -> Step:
    """megatron-core's layers in the place of the linear layers of each block."""
    return one_process(tensor_parallel.megatron_parallel(model), job)


def torch_pipeline(model: GPT, job: Job) -> Step:
    """``torch.distributed.pipelining``, 1F1B: a stage of the layers in each rank."""
    pipeline = pipeline_parallel.TorchPipeline(model, "1f1b", job.micro_batches)
    optimizer = AdamW(pipeline.parameters(), lr=job.lr)

    def step(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = pipeline.step(tokens_BT, targets_BT)
        optimizer.step()
        return loss

    return step


def deepspeed_pipeline(model: GPT, job: Job) -> Step:
    """DeepSpeed's pipeline engine, whose only schedule is 1F1B."""
    pipeline = pipeline_parallel.DeepSpeedPipeline(
        model, job.micro_batches, batch_size=job.batch_size, lr=job.lr
    )
    return pipeline.train_step
