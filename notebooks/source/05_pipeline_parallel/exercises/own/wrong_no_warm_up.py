# caught by: time
# One micro-batch after the other


def my_schedule():
    row = " ".join(f"F{i} B{i} W{i}" for i in range(8))
    return [row] * 4
