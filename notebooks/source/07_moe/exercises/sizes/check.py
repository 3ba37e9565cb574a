"""How many numbers a layer of experts holds, and how many of them one token uses."""

from dlcourse.course.exercises import as_list, describe, expect

NAMES = ("moe_sizes",)
CASES = ("held", "used", "all")
NUM_RANKS = 1
WHERE = "kernel"

_LAYERS = ((64, 256, 8, 2), (64, 128, 8, 1), (4096, 14336, 16, 4), (32, 48, 4, 4), (8, 8, 1, 1))


def check(moe_sizes, rank, world_size):
    findings = []
    for width, hidden, num_experts, top_k in _LAYERS:
        router, expert = width * num_experts, 2 * width * hidden
        want = router + num_experts * expert, router + top_k * expert
        answer = moe_sizes(width, hidden, num_experts, top_k)
        got = as_list(answer)
        layer = f"{width} × {hidden}, {num_experts}, top-{top_k}"
        for case, place in (("held", 0), ("used", 1)):
            if got is None or len(got) != 2:
                findings.append(expect(case, False, "pair", got=describe(answer)))
                continue
            number = got[place]
            key = "off"
            if number == want[place] - router:
                key = "no_router"
            elif number == want[1 - place]:
                key = "swapped"
            elif number == want[place] - router * (1 - top_k / num_experts):
                key = "router_in_part"
            case = "all" if num_experts == top_k else case
            ok = number == want[place]
            findings.append(expect(case, ok, key, layer=layer, got=number, want=want[place]))
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]
