# caught by: cost, none
# The fastest layout on everything there is
from dlcourse.plan.planner import plan


def submit(task):
    for gpus in reversed(task.sizes()):
        try:
            answer = plan(task.job(gpus))
        except ValueError:
            continue
        return gpus, answer.layouts[answer.fastest]
