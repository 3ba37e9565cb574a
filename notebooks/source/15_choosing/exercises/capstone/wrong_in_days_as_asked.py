# caught by: cost
# The first number of GPUs from above that is in time
from dlcourse.plan.planner import plan


def submit(task):
    for gpus in reversed(task.sizes()):
        try:
            answer = plan(task.job(gpus))
        except ValueError:
            continue
        days = answer.numbers(answer.fastest, tokens=task.tokens)["days"] / task.useful
        if days > task.days:
            return None
        if gpus <= task.most:
            return (
                (gpus, answer.layouts[answer.fastest])
                if days * 24 * gpus * task.price <= 2 * task.dollars
                else None
            )
