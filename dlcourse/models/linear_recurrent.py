"""A layer that carries a state from position to position in place of looking back at all of them.

Each head has a state, a D x D matrix. At every position it fades, takes up one key and value, and
answers one query:

    S_t = a_t S_(t-1) + k_t v_t^T          0 < a_t < 1, chosen by the token
    y_t = q_t S_t

Step by step that is a loop over positions. In chunks it is products of matrices: inside a chunk a
query reads earlier keys with the fading between them, and what came before the chunk comes in by
the state. T W scores in place of T^2, and a state that does not grow with T.

Sources: Sun et al., "Retentive Network", 2023 (chunks); Dao and Gu, "Transformers are SSMs"
(Mamba-2), 2024 (fading chosen by the token); Lieber et al., "Jamba", 2024 (with attention in turn).

Shape suffixes as in ``gpt.py``, and W positions of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.formulas.sizes import ArchitectureConfig

CHUNK = 32


class LinearRecurrence(nn.Module):
    """Takes the place of attention: same four matrices, and a small one for the fading."""

    remember_H: Tensor

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.n_head = H
        self.q = nn.Linear(C, C, bias=False)
        self.k = nn.Linear(C, C, bias=False)
        self.v = nn.Linear(C, C, bias=False)
        self.fade = nn.Linear(C, H)
        self.proj = nn.Linear(C, C)
        # At first a head keeps 73% to 99.3% of its state: some look back a few positions, some far
        self.register_buffer("remember_H", torch.linspace(1, 5, H), persistent=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (
            linear(x_BTC).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        log_a_BHT = F.logsigmoid(self.fade(x_BTC) + self.remember_H).transpose(1, 2)
        y_BHTD = in_chunks(q_BHTD, k_BHTD, v_BHTD, log_a_BHT)
        y_BHTD = F.rms_norm(y_BHTD, y_BHTD.shape[-1:])  # whatever the number of keys
        return self.proj(y_BHTD.transpose(1, 2).flatten(-2))


def step_by_step(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, log_a_BHT: Tensor) -> Tensor:
    """The definition, one position after the other."""
    state_BHDD = q_BHTD.new_zeros(*q_BHTD.shape[:2], q_BHTD.size(-1), v_BHTD.size(-1))
    said = []
    for q, k, v, a in zip(
        *(x.unbind(2) for x in (q_BHTD, k_BHTD, v_BHTD, log_a_BHT.exp())), strict=True
    ):
        state_BHDD = a[..., None, None] * state_BHDD + k[..., :, None] * v[..., None, :]
        said.append((q[..., None, :] @ state_BHDD)[..., 0, :])
    return torch.stack(said, dim=2)


def in_chunks(q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, log_a_BHT: Tensor) -> Tensor:
    """The same, ``CHUNK`` positions at a time."""
    state_BHDD = None
    said = []
    for q, k, v, log_a in zip(
        *(x.split(CHUNK, dim=2) for x in (q_BHTD, k_BHTD, v_BHTD, log_a_BHT)), strict=True
    ):
        since_BHW = log_a.cumsum(-1)  # log of what is left of the state from before the chunk
        fading_BHWW = (since_BHW[..., :, None] - since_BHW[..., None, :]).tril().exp().tril()
        y = ((q @ k.mT) * fading_BHWW.to(q.dtype)) @ v
        left_BHW1 = (since_BHW[..., -1:] - since_BHW).exp()[..., None].to(q.dtype)
        new = (k * left_BHW1).mT @ v
        if state_BHDD is not None:
            y = y + (q * since_BHW.exp()[..., None].to(q.dtype)) @ state_BHDD
            new = new + since_BHW[..., -1:, None].exp().to(new.dtype) * state_BHDD
        state_BHDD = new
        said.append(y)
    return torch.cat(said, dim=2)
