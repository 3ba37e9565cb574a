"""Plans for tasks that the learner does not see, judged by the planner."""

from dataclasses import replace

from dlcourse.course.exercises import describe, expect
from dlcourse.plan.layouts import Layout
from dlcourse.plan.planner import plan
from dlcourse.plan.scenario import Scenario, cheapest, score

NAMES = ("submit",)
CASES = ("form", "memory", "time", "cost", "none")
NUM_RANKS = 1
WHERE = "kernel"
TIME_LIMIT = 120  # on a machine that does other things as well

_CASE = {"late": "time", "dear": "cost"} | dict.fromkeys(
    ("memory_first", "memory_last", "memory_only", "host"), "memory"
)


def _task(name, aim, *, loose=1.05, tight=1.05, **given):
    """A task whose deadline is a little later than ``aim`` GPUs need, and its budget a little more
    than the cheapest plan costs."""
    open_end = Scenario(name=name, days=1e9, dollars=1e18, **given)
    answer = plan(open_end.job(aim))
    days = score(open_end, aim, answer.layouts[answer.fastest]).days
    task = replace(open_end, days=_up(loose * days))
    best = cheapest(task)
    return replace(task, dollars=_up(tight * best.dollars))


def _up(value):
    """Rounded up to three digits, as a person would say it."""
    digits = f"{value:.2e}"
    rounded = float(digits)
    return rounded if rounded >= value else float(f"{value * 1.005:.2e}")


def _tasks():
    hobby = dict(model="llama-3.2-1b", gpu="rtx-4090", most=16, batch_tokens=524_288, price=0.4)
    large = dict(model="llama-3-70b", gpu="h100", most=128, batch_tokens=4_194_304, price=2.5)
    experts = dict(model="qwen3-30b-a3b", gpu="h100", most=64, batch_tokens=4_194_304, price=2.5)
    return {
        "hobby": _task("hobby", 8, tokens=2e10, useful=0.48, **hobby),
        "large": _task("large", 64, tokens=1e11, **large),
        "experts": _task("experts", 32, tokens=2e11, **experts),
        "tight": _task("tight", 16, tokens=4e10, tight=0.8, **hobby),
        "late": Scenario(name="late", days=5, dollars=1e6, tokens=1e12, **hobby),
    }


def check(submit, rank, world_size):
    return [finding for name, task in _tasks().items() for finding in _judge(name, task, submit)]


def _judge(name, task, submit):
    possible = name not in ("tight", "late")
    got = submit(task)
    if got is None:
        return [expect("none", not possible, "there_is_one", task=name)]
    pair = got if isinstance(got, tuple | list) and len(got) == 2 else (None, None)
    gpus, layout = pair
    if not (isinstance(gpus, int) and type(layout) is Layout):
        return [expect("form", False, "form", got=describe(got))]
    try:
        found = score(task, gpus, layout)
    except ValueError as error:
        return [expect("form", False, "refused", task=name, error=error)]
    if not possible:
        return [expect("none", False, "impossible", task=name, **_first(found))]
    right = {"form": True, "memory": True, "time": True, "cost": True}
    findings = []
    for key, values in found.faults:
        case = _CASE[key]
        right[case] = False
        findings.append(expect(case, False, key, task=name, gpus=str(gpus), **values))
    return findings + [expect(case, ok) for case, ok in right.items() if ok]


def _first(found):
    """What is wrong with a plan for what cannot be done, in numbers."""
    return {"days": f"{found.days:,.1f}", "dollars": f"{found.dollars:,.0f}"}
