# caught by: runs
# W before its B


def my_schedule():
    row = " ".join(f"F{i} W{i} B{i}" for i in range(8))
    return [row] * 4
