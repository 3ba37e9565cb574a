"""One stage of a pipeline: some layers of a GPT, and their forward, B and W one by one.

Shape suffixes as in ``dlcourse.models.gpt``; B is the sequences of one micro-batch here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dlcourse.models.gpt import GPT


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
    starts = [stage * small + min(stage, extra) for stage in range(num_stages + 1)]
    return [range(a, b) for a, b in pairwise(starts)]


class Stage(nn.Module):
    """Consecutive layers of a GPT; the first stage has the embeddings, the last norm and loss too.

    Its parameters are those of ``model``, under the same names. Only a tied head gets a matrix of
    its own: both copies stay equal because ``PipelineParallel`` adds their gradients.
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
        if self.is_last:
            self.norm, self.head = model.norm, model.head
            if model.config.tie_embeddings:
                tied = model.head.weight
                self.head.weight = nn.Parameter(tied.detach().clone(), tied.requires_grad)

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


class StageWorker:
    """Runs one stage's F, B, W and BW, and keeps between them what autograd needs.

    How B leaves the weights out: a forward hook notes, for each layer with parameters of its own,
    where its output y is in the graph. B asks autograd for the gradients of x and of every y, and
    of no parameter, so no weight's gradient is computed. W then goes from each y to its layer's
    parameters: one step of the graph, with a matrix product that B has left out.

    Args:
        module: called as ``module(x)`` or, in the last stage, ``module(x, targets)``.
        splits: whether B and W come separately; without, no hook is needed.
    """

    def __init__(self, module: nn.Module, *, splits: bool = True) -> None:
        self.module = module
        self.kept: dict[int, tuple] = {}  # micro-batch -> input, output, layers' outputs
        self.ready: dict[int, list] = {}  # micro-batch -> what W starts from
        self.outputs: list[tuple[list[nn.Parameter], GradientEdge]] = []
        for layer in module.modules() if splits else ():
            if any(True for _ in layer.parameters(recurse=False)):
                layer.register_forward_hook(self._note)

    def _note(self, layer: nn.Module, _: tuple, output: Tensor) -> None:
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        if own and output.requires_grad:
            self.outputs.append((own, get_gradient_edge(output)))

    def forward(self, i: int, x: Tensor, *targets: Tensor, scale: float = 1.0) -> Tensor:
        """F of micro-batch ``i``: the output, cut off from its graph, times ``scale``."""
        if x.is_floating_point():
            x = x.detach().requires_grad_()  # else autograd would stop short of it
        self.outputs = []
        y = self.module(x, *targets)
        if scale != 1.0:
            y = y * scale
        end = get_gradient_edge(y) if y.requires_grad else None  # all of it may be frozen
        self.kept[i] = (x if x.requires_grad else None, end, self.outputs)
        return y.detach()

    def backward(self, i: int, grad: Tensor | None) -> Tensor | None:
        """BW: adds to every ``.grad``; returns the gradient of the stage's input."""
        x, end, _ = self.kept.pop(i)
        if end is not None:
            torch.autograd.backward(end, grad)
        return None if x is None else x.grad

    def backward_input(self, i: int, grad: Tensor | None) -> Tensor | None:
        """B: the gradient of the stage's input, and no ``.grad`` yet."""
        x, end, outputs = self.kept.pop(i)
        if end is None:
            self.ready[i] = []
            return None
        wanted = [edge for _, edge in outputs] + ([] if x is None else [x])
        grads = torch.autograd.grad(end, wanted, grad, retain_graph=True)
        self.ready[i] = list(zip(outputs, grads, strict=False))
        return None if x is None else grads[-1]

    def backward_weight(self, i: int) -> None:
        """W: adds to every ``.grad`` what B of micro-batch ``i`` has left out."""
        for (parameters, edge), grad in self.ready.pop(i):
            torch.autograd.backward(edge, grad, inputs=parameters)


class Sleeper:
    """Stands in for a ``StageWorker``: the same messages, but its work is to sleep.

    Four ranks on two cores cannot compute at once, but they can sleep at once. So with stage times
    that are imposed, four ranks behave as four devices would, and bubbles can be measured.

    Args:
        t_F, t_B, t_W: seconds.
        output: what F returns, and B too; its content does not matter.
    """

    def __init__(self, t_F: float, t_B: float, t_W: float, output: Callable[[], Tensor]) -> None:
        self.t_F, self.t_B, self.t_W, self.output = t_F, t_B, t_W, output

    def forward(self, i: int, x: Tensor, *targets: Tensor, scale: float = 1.0) -> Tensor:
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
