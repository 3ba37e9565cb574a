"""The sizes of a GPT, and those of published models.

Shape letters of the formulas, as in ``dlcourse.models.gpt``: L layers, C width, H heads, V
vocabulary, B sequences, T tokens of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """Sizes of a GPT. The default has 873,728 parameters, 3.5 MB in float32.

    Raises:
        ValueError: a size is not a positive whole number, or the heads do not divide the width.
    """

    vocab_size: int = 256
    block_size: int = 128  # longest sequence, in tokens
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    tie_embeddings: bool = False  # one matrix for the token embedding and the output layer

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "tie_embeddings" and (type(value) is not int or value < 1):
                raise ValueError(
                    f"{field.name}={value!r} is not allowed: give a whole number of 1 or more"
                )
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_head={self.n_head} does not divide n_embd={self.n_embd}: "
                "choose a number of heads that divides the width"
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
