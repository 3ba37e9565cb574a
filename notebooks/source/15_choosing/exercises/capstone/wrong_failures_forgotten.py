# caught by: time
# As if no GPU ever failed
from dlcourse.plan.planner import plan


def submit(task):
    best, least = None, task.dollars
    for gpus in task.sizes():
        try:
            answer = plan(task.job(gpus))
        except ValueError:
            continue
        numbers = answer.numbers(answer.fastest, tokens=task.tokens)
        dollars = numbers["gpu_hours"] * task.price
        if numbers["days"] <= task.days and dollars <= least:
            best, least = (gpus, answer.layouts[answer.fastest]), dollars
    return best
