"""Experts' answers put together in whatever order they arrive."""

from itertools import permutations

from dlcourse.course.exercises import describe, expect, expect_close

from ..common import ranks_of, routing

NAMES = ("combine_answers",)
CASES = ("form", "values", "order", "bits", "silent", "dropped")

_C, _TOLERANCE = 16, 1e-3  # answers are about 100; a wrong place is off by tens


def check(combine_answers, rank, world_size):
    import torch

    E = 2 * world_size
    findings = []
    everywhere = routing(20, E, 4, seed=rank)
    # nobody of this rank's tokens goes to the ranks 0 and 2
    few = [e for e in range(E) if ranks_of(e, E, world_size) not in (0, 2)]
    layouts = {
        "values": (everywhere, None),
        "silent": (routing(12, E, 3, seed=rank, favourites=few), None),
        "dropped": (everywhere, 3),  # an expert takes 3 copies of this rank's
    }
    for case, (experts, limit) in layouts.items():
        job = _Job(experts, E, world_size, limit, seed=rank)
        want = job.combined()
        first = None
        orders = list(permutations(job.senders()))
        for number, order in enumerate(orders[:: max(1, len(orders) // 6)]):
            got = combine_answers(
                job.arrivals(order), job.copies.clone(), list(job.send), job.weights
            )
            usable = isinstance(got, torch.Tensor)
            findings.append(expect("form", usable, "form", got=describe(got)))
            if not usable:
                break
            shown = "order" if case == "values" and number else case
            finding = expect_close(shown, got, want, atol=_TOLERANCE)
            if finding["key"] == "far":
                finding = expect(shown, False, job.mistake(got, order), order=str(list(order)))
            findings.append(finding)
            first = got if first is None else first
            if finding["ok"] and case == "values":
                apart = (got - first).abs().max().item()
                findings.append(expect("bits", apart == 0, "bits", off=f"{apart:.1e}"))
    return findings


class _Job:
    """What one rank has sent, and what comes back."""

    def __init__(self, experts, num_experts, world_size, limit, seed):
        import torch

        from dlcourse.models.moe import permute

        random = torch.Generator().manual_seed(seed)
        self.copies, counts = permute(experts, num_experts, limit)
        self.send = counts.view(world_size, -1).sum(1).tolist()
        self.weights = torch.rand(experts.shape, generator=random).softmax(1)
        self.rows = 100 * torch.randn(len(self.copies), _C, generator=random)

    def senders(self):
        return [r for r, count in enumerate(self.send) if count]

    def arrivals(self, order):
        """One message a rank that was sent something, in this order."""
        parts = self.rows.split(self.send)
        return ((r, parts[r].clone()) for r in order)

    def combined(self, rows=None, weights=None):
        from dlcourse.models.moe import combine

        rows = self.rows if rows is None else rows
        return combine(rows, self.copies, self.weights if weights is None else weights)

    def mistake(self, got, order):
        """Which of the usual mistakes gives these very numbers."""
        import torch

        parts = self.rows.split(self.send)
        as_arrived = self.combined(torch.cat([parts[r] for r in order]))
        unweighted = self.combined(weights=torch.ones_like(self.weights))
        known = {"as_arrived": as_arrived, "unweighted": unweighted}
        if len(self.copies) == self.weights.numel():
            shuffled = self.weights.flatten()[self.copies.argsort()]
            known["weights"] = self.combined(weights=shuffled.view_as(self.weights))
        for key, looks_like in known.items():
            if torch.allclose(got, looks_like, atol=_TOLERANCE):
                return key
        return "wrong"
