# caught by: time, none
# The fewest GPUs on which it fits
from dlcourse.plan.planner import plan


def submit(task):
    for gpus in task.sizes():
        try:
            answer = plan(task.job(gpus))
        except ValueError:
            continue
        return gpus, answer.layouts[answer.fastest]
