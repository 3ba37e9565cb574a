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

Shape suffixes as in ``gpt.py``, and n chunks of W positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlcourse.formulas.architectures import CHUNK
from dlcourse.formulas.sizes import ArchitectureConfig


class LinearRecurrence(nn.Module):
    """Takes the place of attention: same four matrices, and a small one for the fading."""

    def __init__(self, config: ArchitectureConfig) -> None:
        super().__init__()
        C, H = config.n_embd, config.n_head
        self.n_head = H
        self.q = nn.Linear(C, C, bias=False)
        self.k = nn.Linear(C, C, bias=False)
        self.v = nn.Linear(C, C, bias=False)
        self.fade = nn.Linear(C, H)
        self.proj = nn.Linear(C, C)

    def forward(self, x_BTC: Tensor) -> Tensor:
        q_BHTD, k_BHTD, v_BHTD = (
            linear(x_BTC).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        # At first a head keeps 73% to 99.3% of its state: some look back a few positions, some far
        remember_H = torch.linspace(1, 5, self.n_head, device=x_BTC.device)
        log_a_BHT = F.logsigmoid(self.fade(x_BTC) + remember_H).transpose(1, 2)
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
    """The same, ``CHUNK`` positions at a time: only the states are made one after the other."""
    T = q_BHTD.size(2)
    rest = -T % CHUNK if T else CHUNK  # whole chunks; nobody reads what is behind
    q, k, v = (
        F.pad(x, (0, 0, 0, rest)).unflatten(2, (-1, CHUNK)) for x in (q_BHTD, k_BHTD, v_BHTD)
    )
    # Logarithm of what is left, at each position, of the state from before its chunk
    left_BHnW = F.pad(log_a_BHT, (0, rest)).unflatten(2, (-1, CHUNK)).cumsum(-1)
    # Of key j at query i: 0 where the key is later. The first tril keeps exp from overflowing
    fading_BHnWW = (left_BHnW[..., :, None] - left_BHnW[..., None, :]).tril().exp().tril()
    y_BHnWD = ((q @ k.mT) * fading_BHnWW.to(q.dtype)) @ v
    at_end_BHnW1 = (left_BHnW[..., -1:] - left_BHnW).exp()[..., None]
    taken_up_BHnDD = (k * at_end_BHnW1.to(k.dtype)).mT @ v
    state = torch.zeros_like(taken_up_BHnDD[:, :, 0])
    states = []
    for taken_up, left in zip(taken_up_BHnDD.unbind(2), left_BHnW[..., -1].unbind(2), strict=True):
        states.append(state)  # from before this chunk
        state = left.exp()[..., None, None].to(state.dtype) * state + taken_up
    y_BHnWD = y_BHnWD + (q * left_BHnW.exp()[..., None].to(q.dtype)) @ torch.stack(states, dim=2)
    return y_BHnWD.flatten(2, 3)[:, :, :T]
