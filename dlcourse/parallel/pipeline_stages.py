"""One stage of a pipeline: some layers of a GPT, and their forward, B and W one by one.

Shape suffixes as in ``dlcourse.models.gpt``; B is the sequences of one micro-batch here.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dlcourse.formulas.devices import layer_ranges
from dlcourse.models.gpt import GPT
from dlcourse.models.targets import weighted


def split_layers(num_layers: int, num_stages: int) -> list[range]:
    """Which layers each stage has: 12 over 4 are 0-2, 3-5, 6-8, 9-11.

    Where they do not divide, the first stages have one more. Raises ValueError with both numbers
    where there are more stages than layers.
    """
    if not 1 <= num_stages <= num_layers:
        raise ValueError(
            f"{num_layers} layers cannot fill {num_stages} stages: take at most {num_layers} "
            "stages (ranks x chunks), or a model with more layers"
        )
    small, extra = divmod(num_layers, num_stages)
    return layer_ranges(num_layers, [small + (stage < extra) for stage in range(num_stages)])


def is_tied(model: GPT) -> bool:
    """Whether embedding and output layer are one matrix, by the configuration or by hand."""
    return model.head.weight is model.token_embedding.weight


class Stage(nn.Module):
    """Consecutive layers of a GPT; the first stage has the embeddings, the last norm and loss too.

    Its parameters are those of ``model``, under the same names. Only a tied head away from the
    embedding gets a matrix of its own: both copies stay equal because ``PipelineParallel`` adds
    their gradients.

    Attributes:
        stream: an empty tensor of the dtype that travels between stages, which is that of the
            embeddings: a stage's own layers may be of several types.
    """

    def __init__(self, model: GPT, layers: range) -> None:
        super().__init__()
        self.config = model.config
        self.is_first = layers.start == 0
        self.is_last = layers.stop == model.config.n_layer
        if self.is_first:
            self.token_embedding = model.token_embedding
            self.position_embedding = model.position_embedding
        self.blocks = nn.ModuleDict({str(i): model.blocks[i] for i in layers})
        tokens, positions = model.token_embedding.weight, model.position_embedding.weight
        self.stream = tokens.new_empty(0, dtype=torch.promote_types(tokens.dtype, positions.dtype))
        if self.is_last:
            self.norm, self.head = model.norm, model.head
            if is_tied(model) and not self.is_first:
                tied = model.head.weight
                self.head.weight = nn.Parameter(tied.detach().clone(), tied.requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stage:
        """Behind ``.to()`` and ``.bfloat16()``: what travels follows. No buffer: no file has it."""
        self.stream = fn(self.stream)
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Tokens (B, T) or the stage before's (B, T, C) → (B, T, C); last: logits or mean loss."""
        if self.is_first:
            positions_T = torch.arange(x.size(1), device=x.device)
            x = self.token_embedding(x) + self.position_embedding(positions_T)
        for block in self.blocks.values():
            x = block(x)
        if not self.is_last:
            return x
        logits_BTV = self.head(self.norm(x))
        if targets_BT is None:
            return logits_BTV
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


class SomeLayers(nn.Module):
    """A model of which each rank of ``stage_group`` has other layers."""

    stage_group: dist.ProcessGroup | None

    def counted_elsewhere(self) -> list[Tensor]:
        """This rank's copies of what another rank has too, with the same gradient."""
        return []


class StageWorker:
    """Runs one stage's F, B, W and BW, and keeps between them what they need of each other.

    Nearly all work on weights is the matrix product of each ``nn.Linear``. So only that product
    waits: in B each of them notes its input and the gradient of its output, and W multiplies. The
    gradients of biases, norms and embeddings are small and come along in B. All else that the
    forward has kept is free after B.

    Args:
        module: called as ``module(x)`` or, in the last stage, ``module(x, targets)``.
        splits: whether B and W come separately; without, the layers stay as they are.
    """

    def __init__(self, module: nn.Module, *, splits: bool = True) -> None:
        self.module = module
        self.kept: dict[int, tuple[Tensor | None, GradientEdge | None]] = {}  # F → B: input, end
        self.waiting: dict[int, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}  # B → W
        self.notes = Notes()
        for layer in module.modules() if splits else ():
            if isinstance(layer, nn.Linear) and computes_as_linear(layer):
                forward = linear_in_two(layer, self.notes)
                layer.forward = forward  # type: ignore[method-assign, assignment]

    def forward(self, i: int, x: Tensor, *targets: Tensor, share: Tensor | None = None) -> Tensor:
        """F of micro-batch ``i``: the output, cut off from its graph; a loss times its share."""
        if x.is_floating_point():
            x = x.detach().requires_grad_()  # else autograd would stop short of it
        y = self.module(x, *targets)
        if share is not None:
            y = weighted(y, share)
        end = get_gradient_edge(y) if y.requires_grad else None  # all of it may be frozen
        self.kept[i] = (x if x.requires_grad else None, end)
        return y.detach()

    def backward(self, i: int, grad: Tensor | None) -> Tensor | None:
        """BW: adds to every ``.grad``; returns the gradient of the stage's input."""
        x, end = self.kept.pop(i)
        if end is not None:
            torch.autograd.backward(end, grad)
        return None if x is None else x.grad

    def backward_input(self, i: int, grad: Tensor | None) -> Tensor | None:
        """B: as BW, but the matrices get nothing yet."""
        self.notes.now = self.waiting[i] = []
        try:
            return self.backward(i, grad)
        finally:
            self.notes.now = None

    def backward_weight(self, i: int) -> None:
        """W: adds to the matrices' ``.grad`` what B of micro-batch ``i`` has left out."""
        for weight, x_NI, grad_NO in self.waiting.pop(i):
            torch.autograd.backward(weight, grad_NO.T @ x_NI)

    def forget(self) -> None:
        """Free what a step that failed has kept."""
        self.kept.clear()
        self.waiting.clear()


def computes_as_linear(layer: nn.Linear) -> bool:
    """Whether its output is ``F.linear`` of a matrix that it trains.

    Not so with a forward of a subclass's own, or a weight that is computed from others: such a
    layer does all of its work in B.
    """
    plain = type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)
    weight = layer._parameters.get("weight")
    return plain and weight is not None and weight.requires_grad


class Notes:
    """Where the layers of a stage note what waits for W: a list while B runs, else None."""

    now: list[tuple[nn.Parameter, Tensor, Tensor]] | None = None


def linear_in_two(layer: nn.Linear, notes: Notes) -> Callable[[Tensor], Tensor]:
    """A new forward for ``layer``. It holds the layer weakly: a cycle would outlive the model."""
    held = weakref.ref(layer)

    def forward(x: Tensor) -> Tensor:
        layer = held()
        assert layer is not None  # it is what calls this
        return LinearInTwo.apply(x, layer.weight, layer.bias, notes)

    return forward


class LinearInTwo(torch.autograd.Function):
    """``F.linear``, whose backward leaves one of its two matrix products to W while B runs.

    N is the tokens of a micro-batch, I and O are the layer's inputs and outputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, notes: Notes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.notes = notes
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_OI = ctx.saved_tensors
        x_NI, grad_NO = x.flatten(0, -2), grad.flatten(0, -2)
        needs_x, _, needs_bias, _ = ctx.needs_input_grad
        x_grad = (grad_NO @ weight_OI).view_as(x) if needs_x else None
        bias_grad = grad_NO.sum(0) if needs_bias else None
        if ctx.notes.now is None:
            return x_grad, grad_NO.T @ x_NI, bias_grad, None
        ctx.notes.now.append((weight_OI, x_NI, grad_NO))
        return x_grad, None, bias_grad, None


class Sleeper:
    """Stands in for a ``StageWorker``: the same messages, but its work is to sleep.

    Four ranks on two cores cannot compute at once, but they can sleep at once. So with stage times
    that are given, four ranks behave as four devices would, and bubbles can be measured.

    Args:
        t_F, t_B, t_W: seconds.
        output: what F returns, and B too; its content does not matter.
    """

    def __init__(self, t_F: float, t_B: float, t_W: float, output: Callable[[], Tensor]) -> None:
        self.t_F, self.t_B, self.t_W, self.output = t_F, t_B, t_W, output

    def forward(self, i: int, x: Tensor, *targets: Tensor, share: Tensor | None = None) -> Tensor:
        time.sleep(self.t_F)
        return self.output()

    def backward(self, i: int, grad: Tensor | None) -> Tensor:
        time.sleep(self.t_B + self.t_W)
        return self.output()

    def backward_input(self, i: int, grad: Tensor | None) -> Tensor:
        time.sleep(self.t_B)
        return self.output()

    def backward_weight(self, i: int) -> None:
        time.sleep(self.t_W)
