"""How many numbers training changes, of our GPT: in a layer, outside the layers, in all.

Counted from the modules of ``dlcourse.models.gpt``. Source of the usual form, 12 L C^2: Narayanan
et al., "Efficient Large-Scale Language Model Training on GPU Clusters", SC 2021, equation 2.
"""

from __future__ import annotations

from dlcourse.formulas.sizes import GPTConfig

LAYER_TENSORS = 13  # four matrices of attention and one bias, two of each in an MLP and in a norm


def layer_parameters(config: GPTConfig) -> int:
    """Of one layer: 4 C^2 + C in attention, 8 C^2 + 5 C in the MLP, 4 C in two norms."""
    C = config.n_embd
    return 12 * C * C + 10 * C


def parameter_units(config: GPTConfig) -> list[tuple[int, int]]:
    """(numbers, tensors) of what is outside the layers, and of each layer: the units of ZeRO.

    Outside are the embeddings of tokens and positions, the last norm and the output layer.
    """
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    tied = config.tie_embeddings
    outside = (2 - tied) * V * C + T * C + 2 * C, 5 - tied
    return [outside, *[(layer_parameters(config), LAYER_TENSORS)] * config.n_layer]


def num_parameters(config: GPTConfig) -> int:
    """Of the whole model; a shared matrix counts once."""
    return sum(numbers for numbers, _ in parameter_units(config))


def matrix_parameters(config: GPTConfig) -> int:
    """Those that take part in a matrix product: 12 L C^2 in the layers, V C in the output layer."""
    C = config.n_embd
    return 12 * config.n_layer * C * C + config.vocab_size * C
