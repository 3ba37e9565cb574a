# caught by: own
from dlcourse.parallel.pipeline_schedules import one_f_one_b


def my_line(rank, w, m):
    return one_f_one_b(w, m).text().split("\n")[rank]
