"""Tokens to the ranks of their experts, each one once for a rank."""

from dlcourse.course.exercises import as_list, describe, expect, expect_equal, gathered, measured

from ..common import ranks_of, routing

NAMES = ("dispatch",)
CASES = ("form", "tokens", "wanted", "shared_rank", "empty", "bytes")

_C = 256  # numbers of a token: 1 KiB, beside which a token's mask is small


def check(dispatch, rank, world_size):
    E = 4 * world_size
    cases = {
        "tokens": routing(24, E, 2, seed=10 + rank),
        # all experts of a token are on one rank
        "shared_rank": _one_rank(16, rank, world_size),
        # rank 2 has no tokens, and nobody wants rank 0
        "empty": routing(0 if rank == 2 else 9, E, 3, seed=30 + rank, favourites=range(4, E)),
    }
    findings = []
    for case, experts in cases.items():
        x = _tokens(len(experts), rank)
        given = x.clone()
        with measured() as seen:
            got = as_list(dispatch(given, experts.clone(), E))
        usable = got is not None and len(got) == 2
        findings.append(expect("form", usable, "form", got=describe(got)))
        if not usable:
            continue
        shown = "tokens" if case == "tokens" else case
        want, mask = _arriving(gathered(experts.tolist()), rank, world_size, E)
        findings += _judge(shown, *got, want, mask, case == "tokens")
        findings.append(_judge_bytes(seen, experts, rank, world_size, E))
    return findings


def _tokens(count, rank):
    """Rows that can be told apart: 1000 times the rank, plus the number of the token."""
    import torch

    return (1000.0 * rank + torch.arange(float(count)))[:, None].repeat(1, _C)


def _one_rank(count, rank, world_size):
    import torch

    owners = (torch.arange(count) + rank) % world_size
    return torch.stack([4 * owners + 1, 4 * owners + 3], dim=1)


def _arriving(experts_of_ranks, rank, world_size, num_experts):
    """What is to come to this rank: tokens in the order of their ranks, and who wants them."""
    import torch

    rows, masks = [], []
    own = range(rank * num_experts // world_size, (rank + 1) * num_experts // world_size)
    for source, chosen in enumerate(experts_of_ranks):
        for number, experts in enumerate(chosen):
            wanted = [e in experts for e in own]
            if any(wanted):
                rows.append(1000.0 * source + number)
                masks.append(wanted)
    tokens = torch.tensor(rows)[:, None].repeat(1, _C) if rows else torch.zeros(0, _C)
    return tokens, torch.tensor(masks, dtype=torch.bool).view(len(rows), len(own))


def _judge(case, tokens, wanted, want, mask, first):
    import torch

    usable = isinstance(tokens, torch.Tensor) and tokens.dim() == 2 and len(want)
    if usable and len(tokens) > len(want) and tokens.unique(dim=0).size(0) == len(want):
        extra = len(tokens) / len(want)
        return [expect(case, False, "repeated", extra=f"{extra:.2g}")]
    shuffled = usable and tokens.shape == want.shape and not torch.equal(tokens, want)
    if shuffled and torch.equal(tokens[:, 0].sort().values, want[:, 0].sort().values):
        return [expect(case, False, "order")]
    right = expect_equal(case, tokens, want)
    if not right["ok"]:
        return [right]
    # A mask of numbers is as good as one of truth values
    if isinstance(wanted, torch.Tensor) and wanted.shape == mask.shape:
        wanted = wanted.bool()
    return [right, expect_equal("wanted" if first else case, wanted, mask)]


def _judge_bytes(seen, experts, rank, world_size, num_experts):
    """What leaves this rank; tokens for its own experts are free."""
    owners = ranks_of(experts, num_experts, world_size)
    others = [r for r in range(world_size) if r != rank]
    pairs = sum(int((owners == r).any(1).sum()) for r in others)
    minimum = pairs * (4 * _C + num_experts // world_size) + 8 * len(others)
    copies = int((owners != rank).sum()) * 4 * _C
    sent = seen.sent()
    key = "every_copy" if 0.99 * copies < sent < 1.1 * copies else "too_much"
    # A mask of 64-bit numbers, or choices of experts, is still small beside the tokens
    return expect("bytes", sent <= 1.1 * minimum + 64, key, times=f"{sent / minimum:.3g}")
