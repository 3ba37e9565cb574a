"""Grade notebooks that were handed in: `grades` makes the table, `sandbox` shuts one submission in,
`submission` is what runs inside.

    dlcourse grade DIR --out grades.csv

A submission runs twice shut in: its cells in a kernel, then what the exercises ask for in the fresh
ranks of `dlcourse.course.exercises`, after the kernel and all that it started has been ended. So it
can patch ``check`` in its kernel without effect, and reaches neither the grader, the solutions, the
teacher's files, nor another submission. What it can do is attack the checker in its own ranks, from
the very function that is checked: that forges its own row, and no other.
"""
