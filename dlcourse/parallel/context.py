"""Context parallelism: one long sequence cut over the ranks, and attention that goes round.

Everything in a transformer but attention works on each position alone. In attention my queries
must meet the keys and values of all positions before them, and those are in other ranks. So they
travel round the ring, a neighbour at a time, while I attend to what I have:

    step 0: my own keys and values    step 1: those of rank - 1    step 2: those of rank - 2 …

No rank ever holds the whole sequence, nor the (T, T) table. Partial results are merged exactly,
because softmax over two parts is known from the parts' log-sum-exp.

With causal attention a plain split is unfair: rank 0 has nothing before it, the last rank has
everything. The balanced (zig-zag) split gives each rank an early and a late chunk.

Shape suffixes as in gpt.py; S = T/p positions of one rank.
Source: Liu et al., "Ring Attention with Blockwise Transformers", 2023,
https://arxiv.org/abs/2310.01889; the zig-zag split of Llama 3's training, 2024,
https://arxiv.org/abs/2407.21783, section 3.3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dlcourse.collectives.p2p import Group, start_exchange
from dlcourse.parallel.divisibility import equal_part
from dlcourse.parallel.first_derivatives import first_derivatives_of
from dlcourse.parallel.sendable import group_size


def chunks_of(rank: int, size: int, *, balanced: bool) -> list[int]:
    """Which chunks of the sequence a rank holds: one of ``size``, or two of ``2 * size``."""
    return [rank, 2 * size - 1 - rank] if balanced else [rank]


def split_sequence(
    x: Tensor, group: Group = None, *, dim: int = 1, balanced: bool = True
) -> Tensor:
    """This rank's positions of a whole sequence.

    Raises:
        ValueError: the sequence cannot be cut into equal chunks.
    """
    size, rank = group_size(group), dist.get_rank(group)
    num_chunks = 2 * size if balanced else size
    equal_part("sequence length", x.size(dim), num_chunks)
    chunks = x.chunk(num_chunks, dim)
    return torch.cat([chunks[i] for i in chunks_of(rank, size, balanced=balanced)], dim)


def blocks_of_work(rank: int, size: int, *, balanced: bool) -> int:
    """Chunk pairs that a rank computes, in units of (T / 2p)^2.

    A chunk's queries and its own keys are a whole pair: ``attend`` computes all of its scores, then
    masks half of them. (A kernel that leaves that half out would count it as 1/2.)
    """
    mine = chunks_of(rank, size, balanced=balanced)
    num_chunks = 2 * size if balanced else size
    pairs = sum(k <= q for q in mine for k in range(num_chunks))
    return pairs * (1 if balanced else 4)


def merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from attention over each.

    Args:
        out, other_out: (..., S, D), each a mean of values with weights that add up to 1.
        lse, other_lse: (..., S), the log of the sum of exp(score) over that set of keys.
    """
    total = torch.logaddexp(lse, other_lse)
    weight, other_weight = (lse - total).exp(), (other_lse - total).exp()
    return out * weight[..., None] + other_out * other_weight[..., None], total


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """Attention of one chunk of queries to one chunk of keys; its output and log-sum-exp."""
    scores = _scores(q, k, causal)
    lse = scores.logsumexp(dim=-1)
    return (scores - lse[..., None]).exp() @ v, lse


def _scores(q: Tensor, k: Tensor, causal: bool) -> Tensor:
    scores = q @ k.transpose(-2, -1) * q.size(-1) ** -0.5
    if causal:
        late = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(late, float("-inf"))
    return scores


def wide(x: Tensor) -> Tensor:
    """What partial results are kept in: of 16 bits, each merge would lose digits."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let autocast leave the types alone inside."""

    @functools.wraps(function)
    def run(ctx: Any, x: Tensor, *args: Any) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return function(ctx, x, *args)

    return run


class _Ring:
    """Sends a buffer to the next rank and receives the previous one's, while others compute."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.size, self.rank = group_size(group), dist.get_rank(group)

    def start(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to pass ``tensor`` on; call the result to wait for the one that comes."""
        if self.size == 1:
            return lambda: tensor
        arriving = torch.empty_like(tensor)
        after, before = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        works = start_exchange(
            sends=[(tensor, after)], receives=[(arriving, before)], group=self.group
        )

        def wait() -> Tensor:
            for work in works:
                work.wait()
            return arriving

        return wait

    def pairs(self, step: int, length: int, balanced: bool) -> Iterator[tuple[slice, slice, bool]]:
        """At this step, which of my queries meet which of the visiting keys: slices, and causal."""
        mine = chunks_of(self.rank, self.size, balanced=balanced)
        theirs = chunks_of((self.rank - step) % self.size, self.size, balanced=balanced)
        width = length // len(mine)
        for i, q_chunk in enumerate(mine):
            for j, k_chunk in enumerate(theirs):
                if k_chunk <= q_chunk:  # keys of a later chunk are in the future: skip all of them
                    q_part = slice(i * width, (i + 1) * width)
                    yield q_part, slice(j * width, (j + 1) * width), k_chunk == q_chunk


class _RingAttention(torch.autograd.Function):
    @staticmethod
    @without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, group: Group, balanced: bool) -> Tensor:
        ring, length = _Ring(group), q.size(-2)
        dtype, q, kv = q.dtype, wide(q), torch.stack([k, v])
        out = torch.zeros_like(q)
        lse = q.new_full(q.shape[:-1], float("-inf"))
        for step in range(ring.size):
            last = step == ring.size - 1
            arrived = None if last else ring.start(kv)
            for mine, theirs, causal in ring.pairs(step, length, balanced):
                part = attend(q[..., mine, :], *wide(kv[..., theirs, :]), causal=causal)
                so_far = out[..., mine, :], lse[..., mine]
                out[..., mine, :], lse[..., mine] = merge(*so_far, *part)
            kv = kv if arrived is None else arrived()
        out = out.to(dtype)
        ctx.save_for_backward(q.to(dtype), k, v, out, lse)
        ctx.group, ctx.balanced = group, balanced
        return out

    @staticmethod
    @without_autocast
    @first_derivatives_of("ring_attention()")
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        ring, length = _Ring(ctx.group), q.size(-2)
        dtype, q, kv = q.dtype, wide(q), torch.stack([k, v])
        grad_q, grad_out = torch.zeros_like(q), wide(grad_out)
        grad_kv = wide(torch.zeros_like(kv))  # travels with its keys, and grows in every rank
        mean_grad = (grad_out * out).sum(dim=-1, keepdim=True)
        for step in range(ring.size):
            last = step == ring.size - 1
            arrived = None if last else ring.start(kv)
            for mine, theirs, causal in ring.pairs(step, length, ctx.balanced):
                q_part, dout = q[..., mine, :], grad_out[..., mine, :]
                k_part, v_part = wide(kv[..., theirs, :])
                # Softmax over the whole row, from its saved log-sum-exp
                weights = (_scores(q_part, k_part, causal) - lse[..., mine, None]).exp()
                grad_weights = dout @ v_part.transpose(-2, -1)
                grad_scores = weights * (grad_weights - mean_grad[..., mine, :])
                grad_scores = grad_scores * q.size(-1) ** -0.5
                grad_q[..., mine, :] += grad_scores @ k_part
                grad_kv[0][..., theirs, :] += grad_scores.transpose(-2, -1) @ q_part
                grad_kv[1][..., theirs, :] += weights.transpose(-2, -1) @ dout
            kv = kv if arrived is None else arrived()
            grad_kv = ring.start(grad_kv)()  # the last time, it comes home
        return grad_q.to(dtype), grad_kv[0].to(dtype), grad_kv[1].to(dtype), None, None


def ring_attention(
    q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, group: Group = None, *, balanced: bool = True
) -> Tensor:
    """Causal attention over a sequence that is cut over the ranks. Shape: (B, H, S, D).

    Equal to ``scaled_dot_product_attention(..., is_causal=True)`` of the whole sequence, in value
    and gradient, up to rounding. Of keys and values (together K bytes in one rank) a rank sends
    (p - 1) K in forward, and in backward (p - 1) K with their gradients, p K; 2 p K for inputs of
    16 bits, whose partial results are kept and sent in float32.

    Args:
        q_BHSD, k_BHSD, v_BHSD: this rank's positions, as ``split_sequence`` gives them.
        group: the ranks that share the sequence; all by default.
        balanced: how the sequence was split.

    Raises:
        ValueError: a balanced split of an odd number of positions; q, k and v that are not alike.
        RuntimeError: in backward with ``create_graph=True``.
    """
    device = q_BHSD.device.type
    if torch.is_autocast_enabled(device):  # which leaves float64 alone
        dtype = torch.get_autocast_dtype(device)
        q_BHSD, k_BHSD, v_BHSD = (
            x if x.dtype == torch.float64 else x.to(dtype) for x in (q_BHSD, k_BHSD, v_BHSD)
        )
    kinds = {(x.shape, x.dtype) for x in (q_BHSD, k_BHSD, v_BHSD)}
    if len(kinds) > 1:
        raise ValueError(
            "q, k and v must have one shape and dtype, and have "
            + ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype in kinds)
        )
    if balanced:
        equal_part("positions of a rank", q_BHSD.size(-2), 2, advice="give a multiple of 2")
    return _RingAttention.apply(q_BHSD, k_BHSD, v_BHSD, group, balanced)
