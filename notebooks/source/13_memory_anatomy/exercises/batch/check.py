"""The largest batch that fits, in few trials."""

from dlcourse.course.exercises import describe, expect

NAMES = ("largest",)
CASES = ("large", "small", "stairs", "exact", "one", "none")
NUM_RANKS = 1
WHERE = "kernel"

CALLS = 25


def check(largest, rank, world_size):
    from dlcourse.formulas.memory import predict_peak
    from dlcourse.formulas.recipe import Recipe
    from dlcourse.formulas.sizes import GPT2_LARGE, GPTConfig

    small = GPTConfig()

    def by_formula(config, recipe):
        return lambda n: sum(predict_peak(config, recipe, sequences=n, block=128).values())

    def stairs(n):  # an allocator that gives out memory in large pieces
        return 1000 * -(-n // 7) + 100

    cases = {
        "large": (by_formula(GPT2_LARGE, Recipe(precision="master")), 24e9),
        "small": (by_formula(small, Recipe(checkpoint=True)), 2e9),
        "stairs": (stairs, 5100),
        "exact": (lambda n: 100 + 50 * n, 100 + 50 * 12),
        "one": (lambda n: 100 + 50 * n, 150),
        "none": (by_formula(GPT2_LARGE, Recipe()), 10e9),
    }
    findings = []
    for case, (need, memory) in cases.items():
        asked = []

        def counted(n, need=need, asked=asked):
            if type(n) is not int or n < 1:
                raise ValueError(f"need({n!r}): give a whole number of 1 or more")
            asked.append(n)
            if len(asked) > 2000:
                raise ValueError("need() was called 2,000 times")
            return need(n)

        got = largest(counted, memory)
        calls = len(asked)
        if type(got) is not int or not 0 <= got < 10**9:
            findings.append(expect(case, False, "number", got=describe(got)))
            continue
        over = got > 0 and need(got) > memory
        more = need(got + 1) <= memory
        one_over = over and (got == 1 or need(got - 1) <= memory)
        key = "one_over" if one_over else "over" if over else "more" if more else "calls"
        values = {"got": got, "calls": calls, "limit": CALLS, "next": got + 1}
        findings.append(expect(case, not over and not more and calls <= CALLS, key, **values))
    return findings
