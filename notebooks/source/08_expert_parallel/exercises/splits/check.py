"""How many copies of tokens go to each rank, and how many come."""

from dlcourse.course.exercises import as_list, describe, expect, gathered, measured

from ..common import numbers, ranks_of, routing

NAMES = ("splits",)
CASES = ("form", "send", "receive", "empty", "bytes")


def check(splits, rank, world_size):
    import torch

    E = 3 * world_size
    cases = {
        "send": (routing(20 + 5 * rank, E, 2, seed=rank), E),
        # rank 1 has no tokens, and all others want experts of the last rank alone
        "empty": (
            routing(0 if rank == 1 else 7 + rank, E, 3, seed=rank, favourites=range(E - 3, E)),
            E,
        ),
    }
    findings = []
    for case, (experts, num_experts) in cases.items():
        given = experts.clone()
        with measured() as seen:
            got = as_list(splits(given, num_experts))
        owners = ranks_of(experts, num_experts, world_size).flatten()
        send = owners.bincount(minlength=world_size).tolist()
        receive = [of_rank[rank] for of_rank in gathered(send)]
        pair = [numbers(part) for part in got] if got is not None else []
        usable = len(pair) == 2 and None not in pair
        findings.append(expect("form", usable, "form", got=describe(got)))
        if not usable:
            continue
        by_remainder = (experts % world_size).flatten().bincount(minlength=world_size).tolist()
        by_expert = experts.flatten().bincount(minlength=num_experts).tolist()
        known = {"remainder": by_remainder, "by_expert": by_expert}
        right, findings_of = _judge(case, pair[0], send, known)
        findings.append(findings_of)
        if case == "send":
            findings.append(_judge("receive", pair[1], receive, {"as_sent": send})[1])
        elif right:
            findings.append(_judge("empty", pair[1], receive, {"as_sent": send})[1])
        sent = seen.sent()
        findings.append(
            expect("bytes", sent <= 8 * world_size, "all_sent", got=f"{sent:.0f}", p=world_size)
        )
    assert torch.equal(given, experts)
    return findings


def _judge(case, got, want, known):
    for key, looks_like in known.items():
        if got == looks_like != want:
            return False, expect(case, False, key)
    return got == want, expect(case, got == want, "counts", got=str(got), want=str(want))
