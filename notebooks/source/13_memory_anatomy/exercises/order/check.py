"""The sets of techniques of which none is better in time and memory."""

from dlcourse.course.exercises import as_list, describe, expect

NAMES = ("best_sets",)
CASES = ("few", "useless", "ties", "nvlink", "network")
NUM_RANKS = 1
WHERE = "kernel"


def check(best_sets, rank, world_size):
    import random

    from dlcourse.formulas.sizes import GPT2_LARGE
    from dlcourse.plan.technique_order import Prices, pareto_front
    from dlcourse.plan.technique_sets import plans

    def answer(triples):
        found = []
        for names, peak, seconds in sorted(triples, key=lambda p: (p[2], p[1], len(p[0]))):
            if not found or peak < found[-1][1]:
                found.append((names, peak, seconds))
        return [names for names, *_ in found]

    def of(bandwidth):
        prices = Prices(flops=1e14, flops16=2e14, bandwidth=bandwidth, per_pass=1e-3)
        every = plans(GPT2_LARGE, sequences=8, block=1024, world_size=4)
        triples = [(p.techniques, p.peak, prices.seconds(p)) for p in every]
        assert answer(triples) == [p.techniques for p in pareto_front(every, prices)]
        return triples

    ties = [((), 9, 2.0), (("mixed",), 9, 1.0), (("zero1",), 5, 1.0), (("mixed", "zero1"), 5, 1.0)]
    cases = {
        "few": [((), 100, 1.0), (("checkpoint",), 40, 1.3), (("accumulate",), 60, 1.1)],
        "useless": [((), 100, 1.0), (("mixed",), 70, 0.6), (("checkpoint",), 80, 1.3)],
        "ties": ties,
        "nvlink": of(3e11),
        "network": of(3e9),
    }
    findings = []
    for case, triples in cases.items():
        shuffled = random.Random(1).sample(triples, len(triples))
        got = best_sets(shuffled)
        want = answer(triples)
        given, got = got, [as_list(names) for names in as_list(got) or [None]]
        if None in got or not all(isinstance(name, str) for names in got for name in names):
            findings.append(expect(case, False, "no_list", got=describe(given)))
            continue
        got = [tuple(names) for names in got]
        peak = {tuple(names): size for names, size, _ in triples}
        key, values = "differs", {"got": len(got), "want": len(want), "name": "–"}
        odd = [names for names in got if names not in want]
        missing = [names for names in want if names not in got]
        strange = [names for names in got if names not in peak]
        if strange:
            key, values["name"] = "unknown", repr(strange[0])[:40]
        elif len(set(got)) < len(got):
            key = "twice"
        elif odd:
            key, values["name"] = "never", " + ".join(odd[0]) or "()"
        elif missing:
            key, values["name"] = "missing", " + ".join(missing[0]) or "()"
        elif got != want:
            key = "sorted"
        findings.append(expect(case, got == want, key, **values))
    return findings
