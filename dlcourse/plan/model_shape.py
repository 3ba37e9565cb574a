"""The sizes of a language model, whoever published it, and how many numbers each part of it has.

Covers what our GPT has not: grouped queries and multi-head latent attention, gated MLPs, experts
with shared ones beside them. ``hf_config.py`` reads it from a ``config.json``.

A layer's numbers come in three kinds, by what divides them:

    sharded      matrices that tensor parallelism cuts
    replicated   norms, biases after a sum, low-rank down projections: whole on each tensor rank
    experts      matrices of routed experts, which expert parallelism divides

Sources: Shazeer, "Fast Transformer Decoding", 2019, and Ainslie et al., "GQA", 2023 (grouped
queries); Shazeer, "GLU Variants", 2020; DeepSeek-AI, "DeepSeek-V2", 2024, section 2.1 (latent
attention) and 2.2 (shared experts). Held against published totals in ``tests/test_planner.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from dlcourse.formulas.sizes import GPTConfig
from dlcourse.words.refusal import Refusal

# No model has more: hidden sizes go to 10**5, vocabularies to 10**6, parameters to 10**13. Beyond,
# products of sizes overflow.
MOST_SIZE, MOST_NUMBERS = 10**7, 10**15
_MAY_BE_ZERO = (
    *("positions", "experts", "top_k", "expert_ffn", "shared_ffn", "moe_layers"),
    *("q_rank", "kv_rank", "rope_dim", "ffn"),
)


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the planner needs to know of a model.

    Args:
        layers, hidden, vocab: L, C, V.
        heads, kv_heads, head_dim, value_dim: of attention; ``head_dim`` is of queries and keys.
        ffn: width of a dense MLP; ``gated`` has two matrices up.
        tied: one matrix for embedding and output.
        positions: learned ones, 0 for rotary or ALiBi.
        norm_bias, qkv_bias, out_bias, mlp_bias: biases there are. qk_norm: norms of q and k.
        experts, top_k, expert_ffn: routed experts of a layer, 0 for none; ``moe_layers`` have them.
        shared_ffn: width of the shared expert(s) together; ``shared_gate`` weighs them.
        router_bias: numbers that balance the router without a loss.
        q_rank, kv_rank, rope_dim: of latent attention; ``kv_rank`` 0 is ordinary attention.

    Raises:
        ValueError: a size is not a whole number, heads that do not divide, a router with no expert.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    ffn: int
    vocab: int
    gated: bool = True
    tied: bool = False
    positions: int = 0
    norm_bias: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    dropout: bool = False
    experts: int = 0
    top_k: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    moe_layers: int = 0
    q_rank: int = 0
    kv_rank: int = 0
    rope_dim: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type != "int":
                continue
            least = 0 if field.name in _MAY_BE_ZERO else 1
            if type(value) is not int or value < least:
                raise Refusal(
                    "refusal.model.whole",
                    name=field.name,
                    value=repr(value),
                    model=self.name,
                    least=least,
                )
            if value > MOST_SIZE:
                said = {"model": self.name, "most": MOST_SIZE}
                much = str(value) if value < 10**12 else f"10**{len(str(value)) - 1}"
                raise Refusal("refusal.model.width", name=field.name, value=much, **said)
        if self.heads % self.kv_heads:
            heads = {"kv_heads": self.kv_heads, "heads": self.heads}
            raise Refusal("refusal.model.kv_heads", model=self.name, **heads)
        if self.experts and not 1 <= self.top_k <= self.experts:
            sizes = {"top_k": self.top_k, "experts": self.experts}
            raise Refusal("refusal.model.top_k", model=self.name, **sizes)
        if (numbers := total_numbers(self)) > MOST_NUMBERS:
            most = f"{MOST_NUMBERS:.0e}"
            raise Refusal(
                "refusal.model.most", model=self.name, numbers=f"{numbers:.3g}", most=most
            )

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Of keys and values, when attention works on them."""
        return self.kv_heads * self.head_dim

    @property
    def output_width(self) -> int:
        return self.heads * self.value_dim

    @property
    def ups(self) -> int:
        """Matrices that widen: two in a gated MLP."""
        return 2 if self.gated else 1


def gpt_shape(config: GPTConfig, name: str = "gpt", **experts: Any) -> ModelShape:
    """Our own GPT, see ``dlcourse.models.gpt``; or one of ``dlcourse.models.architectures``, with
    ``experts``, ``top_k`` and so on in each layer."""
    return ModelShape(
        **experts,
        name=name,
        layers=config.n_layer,
        hidden=config.n_embd,
        heads=config.n_head,
        kv_heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        value_dim=config.n_embd // config.n_head,
        ffn=4 * config.n_embd,
        vocab=config.vocab_size,
        gated=False,
        tied=config.tie_embeddings,
        positions=config.block_size,
        norm_bias=True,
        out_bias=True,
        mlp_bias=True,
    )


def attention_numbers(shape: ModelShape) -> dict[str, int]:
    """Of one attention: {"sharded": ..., "replicated": ...}."""
    h, q, k, o = shape.hidden, shape.query_width, shape.key_width, shape.output_width
    bias = shape.out_bias * h
    if not shape.kv_rank:
        kv = k + shape.kv_heads * shape.value_dim
        sharded = h * (q + kv) + o * h + shape.qkv_bias * (q + kv)
        return {"sharded": sharded, "replicated": bias + shape.qk_norm * 2 * shape.head_dim}
    nope = shape.head_dim - shape.rope_dim
    sharded = shape.kv_rank * shape.heads * (nope + shape.value_dim) + o * h
    replicated = h * (shape.kv_rank + shape.rope_dim) + shape.kv_rank + bias
    if shape.q_rank:
        sharded += shape.q_rank * q
        replicated += h * shape.q_rank + shape.q_rank
    else:
        sharded += h * q
    return {"sharded": sharded, "replicated": replicated}


def layer_numbers(shape: ModelShape, *, moe: bool) -> dict[str, int]:
    """Of one layer by kind: "sharded", "replicated", "experts"."""
    h = shape.hidden
    found = attention_numbers(shape) | {"experts": 0}
    found["replicated"] += 2 * h * (1 + shape.norm_bias)
    if not moe:
        found["sharded"] += (shape.ups + 1) * h * shape.ffn
        found["sharded"] += shape.mlp_bias * shape.ups * shape.ffn
        found["replicated"] += shape.mlp_bias * h
        return found
    biases = shape.mlp_bias * (shape.ups * shape.expert_ffn + h)
    found["experts"] = shape.experts * ((shape.ups + 1) * h * shape.expert_ffn + biases)
    found["sharded"] += (shape.ups + 1) * h * shape.shared_ffn
    found["replicated"] += h * shape.experts + shape.router_bias * shape.experts
    found["replicated"] += shape.shared_gate * h
    return found


def outside_numbers(shape: ModelShape) -> dict[str, int]:
    """Outside the layers: "embedding", "head" (0 where tied), "norm" and "positions"."""
    matrix = shape.vocab * shape.hidden
    return {
        "embedding": matrix,
        "head": 0 if shape.tied else matrix,
        "norm": shape.hidden * (1 + shape.norm_bias),
        "positions": shape.hidden * shape.positions,
    }


def total_numbers(shape: ModelShape) -> int:
    """Of the whole model."""
    dense = sum(layer_numbers(shape, moe=False).values()) if shape.layers > shape.moe_layers else 0
    moe = sum(layer_numbers(shape, moe=True).values()) if shape.moe_layers else 0
    layers = (shape.layers - shape.moe_layers) * dense + shape.moe_layers * moe
    return layers + sum(outside_numbers(shape).values())


def active_numbers(shape: ModelShape) -> int:
    """Those that one token uses: of the routed experts ``top_k``."""
    if not shape.moe_layers:
        return total_numbers(shape)
    idle = shape.experts - shape.top_k
    one = layer_numbers(shape, moe=True)["experts"] // shape.experts
    return total_numbers(shape) - shape.moe_layers * idle * one


def matrix_numbers(shape: ModelShape) -> int:
    """Numbers of matrices that multiply a token: 6 FLOPs each for forward and backward."""
    h, attention = shape.hidden, attention_numbers(shape)
    each = attention["sharded"] - shape.qkv_bias * (shape.query_width + 2 * shape.key_width)
    if shape.kv_rank:
        each += h * (shape.kv_rank + shape.rope_dim + shape.q_rank)
    one = (shape.ups + 1) * h
    dense = one * shape.ffn
    moe = one * (shape.top_k * shape.expert_ffn + shape.shared_ffn) + h * shape.experts
    mlps = (shape.layers - shape.moe_layers) * dense + shape.moe_layers * moe
    return shape.layers * each + mlps + shape.vocab * h


def training_flops(shape: ModelShape, *, sequence: int) -> float:
    """Forward and backward of a token, for the MFU: nothing computed again, no mask subtracted.

    Source: Chowdhery et al., "PaLM", 2022, appendix B.
    """
    attention = 6 * sequence * (shape.query_width + shape.output_width)
    return 6 * matrix_numbers(shape) + shape.layers * attention
