"""Two sparse layers: attention to the last positions alone, and an MLP with blocks on its diagonal.

Sparse by structure: which numbers are zero is decided before training and is the same for every
token. (An MoE is sparse by choice: a router decides for each token.) What is zero is neither kept
nor computed.

Sources: Beltagy et al., "Longformer", 2020 (sliding window, computed in chunks); Dao et al.,
"Monarch", 2022 (block-diagonal matrices with a shuffle between them).

Shape suffixes as in ``gpt.py``, and
    W  positions in a window      n  chunks of W positions      b  blocks of a matrix
    F  hidden width of the MLP
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.models.gpt import Attention


class SlidingWindowAttention(Attention):
    """Each position reads from itself and the ``window - 1`` positions before it.

    A chunk of W queries needs the keys of its own chunk and of the one before: T 2 W scores in
    place of T^2.
    """

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__(config)
        self.window = config.window

    def forward(self, x_BTC: Tensor) -> Tensor:
        B, T, _ = x_BTC.shape
        W = max(1, min(self.window, T))
        n = max(1, -(-T // W))
        rest = n * W - T  # whole chunks; nobody reads what is behind
        chunks_BnWC = (
            F.pad(linear(x_BTC), (0, 0, 0, rest)).unflatten(1, (n, W))
            for linear in (self.q, self.k, self.v)
        )
        q_BnHWD, k_BnHWD, v_BnHWD = (
            x_BnWC.unflatten(-1, (self.n_head, -1)).transpose(2, 3) for x_BnWC in chunks_BnWC
        )
        y_BnHWD = F.scaled_dot_product_attention(
            q_BnHWD.flatten(0, 1),
            with_chunk_before(k_BnHWD).flatten(0, 1),
            with_chunk_before(v_BnHWD).flatten(0, 1),
            attn_mask=window_mask(n, W, x_BTC.device).repeat(B, 1, 1, 1),
        ).view(q_BnHWD.shape)
        return self.proj(y_BnHWD.transpose(2, 3).flatten(-2).flatten(1, 2)[:, :T])


def with_chunk_before(x_BnHWD: Tensor) -> Tensor:
    """Each chunk behind the one before it: (B, n, H, 2 W, D). Before the first come zeros."""
    before = F.pad(x_BnHWD, (0, 0, 0, 0, 0, 0, 1, 0))[:, :-1]
    return torch.cat([before, x_BnHWD], dim=3)


def window_mask(n: int, W: int, device: torch.device) -> Tensor:
    """True where a query may read: (n, 1, W, 2 W)."""
    query_W1 = torch.arange(W, 2 * W, device=device)[:, None]
    key_2W = torch.arange(2 * W, device=device)
    near = (key_2W <= query_W1) & (key_2W > query_W1 - W)
    mask = near.repeat(n, 1, 1, 1)
    mask[0, ..., :W] = False  # before the first chunk there is nothing
    return mask


class BlockSparseMLP(nn.Module):
    """An MLP whose two matrices have b blocks on the diagonal and zeros elsewhere.

    With the same FLOPs it is b times as wide inside. The shuffle between the matrices gives every
    block of the second a part of what every block of the first says.
    """

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        b, C, hidden = config.num_blocks, config.n_embd, config.mlp_width
        self.num_blocks = b
        self.up = nn.Parameter(torch.empty(b, C // b, hidden // b))
        self.up_bias = nn.Parameter(torch.empty(hidden))
        self.down = nn.Parameter(torch.empty(b, hidden // b, C // b))
        self.down_bias = nn.Parameter(torch.empty(C))

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_bNc = x_BTC.flatten(0, -2).unflatten(-1, (self.num_blocks, -1)).transpose(0, 1)
        h_NF = torch.bmm(x_bNc, self.up).transpose(0, 1).flatten(1) + self.up_bias
        # Shuffle: number f of a block goes to block f mod b
        h_bNf = F.gelu(h_NF).unflatten(-1, (-1, self.num_blocks)).permute(2, 0, 1)
        y_NC = torch.bmm(h_bNf, self.down).transpose(0, 1).flatten(1) + self.down_bias
        return y_NC.view_as(x_BTC)
