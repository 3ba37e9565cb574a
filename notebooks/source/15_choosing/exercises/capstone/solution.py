from dlcourse.plan.planner import plan


def submit(task):
    best, least = None, task.dollars
    for gpus in task.sizes():
        try:
            answer = plan(task.job(gpus))
        except ValueError:
            continue
        days = answer.numbers(answer.fastest, tokens=task.tokens)["days"] / task.useful
        dollars = days * 24 * gpus * task.price
        if days <= task.days and dollars <= least:
            best, least = (gpus, answer.layouts[answer.fastest]), dollars
    return best
