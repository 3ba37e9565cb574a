"""What tensor and sequence parallelism can cut; all else is refused before anything is sent.

A cut layer is built anew from the weights of a known one. What a learner has changed in a subclass
or by a hook would be dropped, or would work with a part of the numbers: in silence.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from dlcourse.models import architectures
from dlcourse.models.gpt import GPT, MLP, Attention, Block
from dlcourse.models.sparse import SlidingWindowAttention
from dlcourse.parallel.known_code import check_known
from dlcourse.parallel.tensor_vocabulary import check_embedding

MATRICES = {Attention: ("q", "k", "v", "proj"), MLP: ("up", "down")}


def check_whole(model: nn.Module) -> None:
    """Raise a ``ValueError`` where ``model`` cannot be cut as if it were one process's."""
    if any(hasattr(layer, "cut") for layer in model.modules()):
        raise ValueError("model has been cut before: make a new GPT and cut that")
    owned: set[nn.Parameter] = set()
    for name, layer in model.named_modules():
        if isinstance(layer, _DropoutNd) and layer.p > 0:
            raise ValueError(
                f"{name} is a {type(layer).__name__} with p={layer.p}: ranks with other random "
                "numbers would drop other values, and their LayerNorms drift apart; set p=0"
            )
        if not isinstance(layer, Attention | MLP):
            continue
        for _, parameter in layer.named_parameters(remove_duplicate=False):
            if parameter in owned:
                raise ValueError(
                    "model has a matrix that several attentions or MLPs share, or one of them has "
                    "twice, and cutting would give each its own: share the whole layer, or give "
                    "each a copy"
                )
            owned.add(parameter)
        check_layer(layer, name)


def check_layer(layer: Attention | MLP, name: str = "") -> None:
    """Refuse an attention or MLP that computes something else, or with more than its matrices."""
    kind: type[nn.Module] = MLP if isinstance(layer, MLP) else Attention
    known = SlidingWindowAttention if isinstance(layer, SlidingWindowAttention) else kind
    check_known(layer, known, name, "tensor parallelism cuts it")
    for matrix in MATRICES[kind]:
        path = f"{name}.{matrix}".lstrip(".")
        check_known(getattr(layer, matrix), nn.Linear, path, "tensor parallelism cuts it")


def check_vocabulary(gpt: GPT) -> None:
    """Refuse a GPT whose own call, embedding or output layer would not come through the cut."""
    check_known(gpt, GPT, "", "cutting the vocabulary builds it anew")
    ends = {"token_embedding": nn.Embedding, "head": nn.Linear}
    for name, kind in ends.items():
        check_known(getattr(gpt, name), kind, name, "tensor parallelism cuts it")
    check_embedding(gpt.token_embedding)
    cut = {gpt.token_embedding.weight, gpt.head.weight}
    for name, layer in gpt.named_modules():
        if name not in ends and not cut.isdisjoint(layer.parameters(recurse=False)):
            raise ValueError(
                f"{name} shares its matrix with the token embedding or the output layer, and "
                "cutting would give each its own: give it a copy"
            )


def check_stream(gpt: GPT) -> None:
    """Refuse what needs all positions, where each rank has only its part of the stream."""
    check_embedding(gpt.position_embedding)
    for name, block in gpt.blocks.named_children():
        known = architectures.Block if isinstance(block, architectures.Block) else Block
        check_known(block, known, f"blocks.{name}", "sequence_parallel cuts its stream")
    for layer in (gpt.norm, *(layer for block in gpt.blocks for layer in block.children())):
        if not isinstance(layer, Attention | MLP) and type(layer) not in (nn.LayerNorm, nn.RMSNorm):
            raise ValueError(
                f"gpt has a {type(layer).__name__}, which would see only this rank's positions "
                "and get only their gradients: take tensor_parallel for this architecture"
            )
