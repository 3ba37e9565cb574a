# caught by: complete
# Half the work


def my_schedule():
    row = " ".join(f"F{i} B{i} W{i}" for i in range(4))
    return [row] * 4
