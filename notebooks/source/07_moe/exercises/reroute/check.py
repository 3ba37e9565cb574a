"""A full expert's tokens go to their second choice: who is dropped then?"""

from dlcourse.course.exercises import describe, expect

NAMES = ("place",)
CASES = ("limit", "first", "second", "dropped", "answer")
NUM_RANKS = 1

_N = 2048
# Seed, experts, capacity factor, how popular a quarter of the experts is. So tight that some second
# choices find no place either: 0.5 to 0.7% of the tokens
_LAYERS = ((0, 8, 1.02, 1.0), (1, 4, 1.02, 0.6), (2, 16, 1.04, 0.6))


def check(place, rank, world_size):
    import torch

    findings = []
    for seed, num_experts, factor, crowding in _LAYERS:
        choices_N2 = _choices(num_experts, seed, crowding)
        limit = -int(-factor * _N // num_experts)
        before = choices_N2.clone()
        got = place(choices_N2, num_experts, limit)
        if not isinstance(got, torch.Tensor) or got.shape != (_N,):
            findings.append(expect("answer", False, "shape_of", got=describe(got), tokens=_N))
            continue
        wrong = (got != before[:, 0]) & (got != before[:, 1]) & (got != -1)
        kept = torch.equal(before, choices_N2)
        key = "changed_input" if not kept else "not_chosen"
        findings.append(expect("answer", kept and not wrong.any(), key, number=int(wrong.sum())))
        if kept and not wrong.any():
            findings += _judge(got, before, num_experts, limit)
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]


def _judge(got, choices_N2, num_experts, limit):
    want = _reference(choices_N2, num_experts, limit)
    taken = got[got >= 0].bincount(minlength=num_experts)
    over = int(taken.argmax())
    first = choices_N2[:, 0]
    robbed = (want == first) & (got != first)
    intruding = (want != first) & (got == first)
    room = (got == -1) & (taken[choices_N2] < limit).any(1)
    dropped = 100 * (got == -1).sum() / len(got)
    plain = 100 * _dropped_without(choices_N2, num_experts, limit) / len(got)
    shown = {"share": f"{dropped:.2g}%", "plain": f"{plain:.2g}%"}
    return [
        expect(
            "limit", taken.max() <= limit, "over", expert=over, got=int(taken.max()), limit=limit
        ),
        expect("first", not robbed.any(), "robbed", number=int(robbed.sum())),
        expect("first", not intruding.any(), "out_of_turn", number=int(intruding.sum())),
        expect("second", not room.any(), "room_left", number=int(room.sum())),
        expect("dropped", dropped < 1, "too_many", **shown),
    ]


def _reference(choices_N2, num_experts, limit):
    import torch

    taken = [0] * num_experts
    found = torch.full((len(choices_N2),), -1)
    for choice in (0, 1):
        for token, expert in enumerate(choices_N2[:, choice].tolist()):
            if found[token] < 0 and taken[expert] < limit:
                found[token] = expert
                taken[expert] += 1
    return found


def _dropped_without(choices_N2, num_experts, limit):
    counts = choices_N2[:, 0].bincount(minlength=num_experts)
    return (counts - limit).clamp(min=0).sum()


def _choices(num_experts, seed, crowding):
    """First choices that crowd, second ones that do not."""
    import torch

    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_experts, generator=random)
    crowded, others = order[: num_experts // 4], order[num_experts // 4 :]
    favour = torch.zeros(num_experts)
    favour[crowded] = crowding
    first = (favour + torch.randn(_N, num_experts, generator=random)).argmax(1)
    place = torch.randint(len(others), (_N,), generator=random)
    second = others[place]
    second = torch.where(second == first, others[(place + 1) % len(others)], second)
    return torch.stack([first, second], dim=1)
