"""What is trained, on what, with which software: a job. ``layouts.py`` has ways to spread it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlcourse.plan.cluster import Cluster
from dlcourse.plan.model_shape import ModelShape
from dlcourse.words.refusal import Refusal

Array = NDArray[np.float64]
ATTENTION = ("flash", "flash1", "flash3", "unfused")
MOST_TOKENS = 10**12  # of a step: no run has more than 10**8
KERNELS = ("fused", "eager")
DISPATCH = ("once", "plain")
# Bytes of a logit: alive at the loss, moved in forward and in backward
LOSS_BYTES = {"float32": (12, 38, 14), "fused": (4, 4, 4)}
# Bytes of a parameter, of a gradient between steps, of the optimizer's state for it. Of gradients
# in float32 Megatron keeps 4 bytes; where each micro-batch's 16-bit gradient is added to a float32
# sum, both are there.
# SUM_BYTES move for each weight's gradient where a micro-batch's is added to the step's: 16 bits
# written, read, and summed in 16 bits; summed in float32 by the product itself; or both.
STATE_BYTES = {
    "bf16": (2, 2, 12),
    "bf16-float32-gradients": (2, 4, 12),
    "bf16-both-gradients": (2, 6, 12),
    "float32": (4, 4, 8),
    "fsdp": (4, 4, 8),
}
# Bytes of a parameter and of a gradient as they are sent. FSDP keeps float32, computes in 16 bits.
SENT_BYTES = {
    "bf16": (2, 2),
    "bf16-float32-gradients": (2, 4),
    "bf16-both-gradients": (2, 4),
    "float32": (4, 4),
    "fsdp": (2, 4),
}
VALUE_BYTES = dict.fromkeys(STATE_BYTES, 2) | {"float32": 4}  # of an activation
SUM_BYTES = {
    "bf16": 8,
    "bf16-float32-gradients": 8,
    "bf16-both-gradients": 12,
    "float32": 12,
    "fsdp": 8,
}
# Of them, what a kernel of its own moves once the product has written its gradient in 16 bits: it
# reads it and the sum, and writes the sum
SUM_APART_BYTES = dict.fromkeys(STATE_BYTES, 0) | {"bf16": 6, "bf16-both-gradients": 10}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training job.

    Args:
        batch_tokens: tokens of a step, of all ranks together.
        sequence: tokens of a sequence.
        states: one of ``STATE_BYTES``: 16, 18 or 20 bytes a parameter; "fsdp" keeps
            float32 (16 bytes) and computes in 16 bits, as FSDP's mixed precision does.
        attention: "flash" (FlashAttention-2), the slower "flash1" (also Triton's) and the faster
            "flash3" (or cuDNN's) keep no scores; "unfused" as before 2022.
        kernels: "fused" norms, activations, rotations, or "eager" ones, each operator by itself.
        dispatch: "once" sends a token once to each rank or node that has experts of its, as DeepEP
            does; "plain" is an all-to-all, once for each expert.
        sequence_parallel: norms and residual stream are divided over the tensor ranks too.
        vocab_parallel: embedding and output layer are divided over the tensor ranks.
        split_messages: what goes between pipeline stages is cut over the tensor ranks, and gathered
            by them (Megatron's scatter and gather), and not kept; or each sends the whole and keeps
            it until its backward, as this course does.
        overlap_tensor: tensor-parallel collectives run beside the products (user buffers).
        overlap_data: gradients are reduced beside the last backward, parameters gathered beside
            the first forward.
        overlap_backward: the backward's all-reduce before a layer's first product runs beside the
            gradients of its weights, as in Megatron since 2022.
        overlap_pipeline: with chunks, messages between stages run beside computing (since 2023).
        cut_experts: each expert is cut over the tensor ranks too, which have the same tokens, as in
            this course and in GShard; else whole experts are spread over tensor x context x data
            ranks (Megatron's folding).
        imbalance: tokens of the busiest expert rank over the mean: 1 is forced balance; natural
            routing costs 8 to 20%.
        loss: "float32" keeps 12 bytes a logit (logits, log-softmax and its gradient in float32;
            see ``formulas/activations.py``), or 8 where the vocabulary is divided (softmax is its
            gradient's memory), and moves 52, operator by operator; "fused" keeps 4, logits and
            gradient in 16 bits, and moves 8.

    Raises:
        ValueError: sizes that are not positive, a batch that is no whole number of sequences, or
            a name that is unknown.
    """

    shape: ModelShape
    cluster: Cluster
    batch_tokens: int
    sequence: int = 4096
    states: str = "bf16-float32-gradients"
    attention: str = "flash"
    kernels: str = "fused"
    dispatch: str = "once"
    cut_experts: bool = False
    imbalance: float = 1.0
    loss: str = "float32"
    sequence_parallel: bool = True
    vocab_parallel: bool = True
    split_messages: bool = True
    overlap_tensor: bool = False
    overlap_data: bool = True
    overlap_backward: bool = True
    overlap_pipeline: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "sequence"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise Refusal("refusal.whole", name=name, value=repr(value), least=1)
            if value > MOST_TOKENS:
                said, most = f"{value:.3g}", f"{MOST_TOKENS:.0e}"
                raise Refusal("refusal.tokens.most", name=name, value=said, most=most)
        if not self.imbalance >= 1:
            raise ValueError(f"imbalance={self.imbalance!r}: the busiest rank has 1 or more")
        if self.cut_experts and self.sequence_parallel:
            raise ValueError(
                "cut_experts=True with sequence_parallel=True: ranks that share an expert have the "
                "same tokens, so give sequence_parallel=False"
            )
        if self.batch_tokens % self.sequence:
            raise Refusal(
                "refusal.batch",
                batch=self.batch_tokens,
                sequence=self.sequence,
                below=self._near(0),
                above=self._near(1),
            )
        for name, allowed in (
            ("states", STATE_BYTES),
            ("attention", ATTENTION),
            ("kernels", KERNELS),
            ("dispatch", DISPATCH),
            ("loss", LOSS_BYTES),
        ):
            if getattr(self, name) not in allowed:
                value = repr(getattr(self, name))
                raise Refusal("refusal.unknown", name=name, value=value, known=", ".join(allowed))

    def _near(self, more: int) -> int:
        return max(1, self.batch_tokens // self.sequence + more) * self.sequence

    @property
    def sequences(self) -> int:
        """Of a step."""
        return self.batch_tokens // self.sequence
