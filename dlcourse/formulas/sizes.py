"""The sizes of a GPT, what its layers are made of, and the sizes of published models.

Shape letters of the formulas, as in ``dlcourse.models.gpt``: L layers, C width, H heads, V
vocabulary, B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT. The default has 873,728 parameters, 3.5 MB in float32.

    Raises:
        ValueError: a size is not a positive whole number, the heads do not divide the width, or
            ``tie_embeddings`` is neither True nor False.
    """

    vocab_size: int = 256
    block_size: int = 128  # longest sequence, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    tie_embeddings: bool = False  # one matrix for the token embedding and the output layer

    def __post_init__(self) -> None:
        for field in fields(GPTConfig):
            if field.name != "tie_embeddings":
                check_size(field.name, getattr(self, field.name))
        if type(self.tie_embeddings) is not bool:  # "False" and 2 would count as yes
            raise ValueError(
                f"tie_embeddings={self.tie_embeddings!r} is not allowed: give True or False"
            )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_head={self.n_head} does not divide n_embd={self.n_embd}: "
                "choose a number of heads that divides the width"
            )


MIXERS = ("attention", "window", "recurrent")  # how a position learns of those before it
FEED_FORWARDS = ("mlp", "moe", "block_sparse")  # what each position then does on its own


@dataclass(frozen=True, kw_only=True)
class ArchitectureConfig(GPTConfig):
    """A GPT whose layers differ. Without arguments it is the dense ``GPTConfig``.

    ``mixers`` and ``feed_forwards`` are used in turn: ``("mlp", "moe")`` has experts in every
    second layer.

    Raises:
        ValueError: an unknown layer, a size that is not a positive whole number, more experts for
            a token than there are, sizes that do not divide, a capacity that is not above 0.
    """

    mixers: tuple[str, ...] = ("attention",)
    feed_forwards: tuple[str, ...] = ("mlp",)
    hidden: int | None = None  # width inside an MLP; 4 C by default
    num_experts: int = 8
    top_k: int = 2  # experts that a token uses
    expert_hidden: int | None = None  # width inside an expert; K of them are one MLP by default
    shared_hidden: int | None = None  # width of an expert for all tokens; none by default
    capacity_factor: float | None = None  # copies an expert takes over its even share; no limit
    window: int = 32  # positions that sliding-window attention reads
    num_blocks: int = 4  # of a block-sparse matrix, on its diagonal

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (("mixers", MIXERS), ("feed_forwards", FEED_FORWARDS)):
            chosen = getattr(self, name)
            if type(chosen) is not tuple or not chosen or not set(chosen) <= set(known):
                raise ValueError(
                    f"{name}={chosen!r} is not allowed: give a tuple of {', '.join(known)}"
                )
        for name in ("hidden", "expert_hidden", "shared_hidden"):
            if getattr(self, name) is not None:
                check_size(name, getattr(self, name))
        for name in ("num_experts", "top_k", "window", "num_blocks"):
            check_size(name, getattr(self, name))
        if "moe" in self.feed_forwards:
            check_experts(self.num_experts, self.top_k, self.capacity_factor)
            if self.expert_hidden is None and self.mlp_width % self.top_k:
                raise ValueError(
                    f"top_k={self.top_k} does not divide hidden={self.mlp_width}: "
                    "give expert_hidden, the width inside an expert"
                )
        if "block_sparse" in self.feed_forwards:
            for name, size in (("n_embd", self.n_embd), ("hidden", self.mlp_width)):
                if size % self.num_blocks:
                    raise ValueError(
                        f"num_blocks={self.num_blocks} does not divide {name}={size}: "
                        "choose a number of blocks that does"
                    )

    @property
    def mlp_width(self) -> int:
        """Inside a dense or block-sparse MLP."""
        return self.hidden or 4 * self.n_embd

    @property
    def expert_width(self) -> int:
        """Inside an expert."""
        return self.expert_hidden or self.mlp_width // self.top_k

    def layers(self) -> list[tuple[str, str]]:
        """(mixer, feed-forward) of each layer."""
        return [
            (self.mixers[i % len(self.mixers)], self.feed_forwards[i % len(self.feed_forwards)])
            for i in range(self.n_layer)
        ]


def check_size(name: str, value: object) -> None:
    """Refuse what is not a whole number of 1 or more."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={value!r} is not allowed: give a whole number of 1 or more")


def check_experts(num_experts: int, top_k: int, capacity_factor: float | None = None) -> None:
    """Refuse what no layer of experts can be.

    Raises:
        ValueError: ``top_k`` is not from 1 to ``num_experts``, or the capacity not above 0.
    """
    check_size("num_experts", num_experts)
    if type(top_k) is not int or not 1 <= top_k <= num_experts:
        raise ValueError(
            f"top_k={top_k!r} is not allowed with num_experts={num_experts}: "
            f"give 1 to {num_experts}"
        )
    if capacity_factor is not None and not (
        type(capacity_factor) in (int, float) and 0 < capacity_factor < inf
    ):
        raise ValueError(
            f"capacity_factor={capacity_factor!r} is not allowed: give a number above 0, such as "
            "1.25, or None so that no token is dropped"
        )


# As published: one matrix for embedding and output (Radford et al., 2019)
GPT2_LARGE = GPTConfig(
    n_layer=36, n_head=20, n_embd=1280, vocab_size=50257, block_size=1024, tie_embeddings=True
)

# Sizes as GPT-2 (Radford et al., 2019) and GPT-3 (Brown et al., 2020, table 2.1) have them; the
# vocabulary of GPT-2, padded to a multiple of 1,024 as Megatron does for 8 ranks.
MODELS: dict[str, GPTConfig] = {
    "gpt2-large": GPTConfig(n_layer=36, n_head=20, n_embd=1280, vocab_size=51200, block_size=1024),
    "1.3b": GPTConfig(n_layer=24, n_head=32, n_embd=2048, vocab_size=51200, block_size=2048),
    "7b": GPTConfig(n_layer=32, n_head=32, n_embd=4096, vocab_size=51200, block_size=2048),
    "13b": GPTConfig(n_layer=40, n_head=40, n_embd=5120, vocab_size=51200, block_size=2048),
}
