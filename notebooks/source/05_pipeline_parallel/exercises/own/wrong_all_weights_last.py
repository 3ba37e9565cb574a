# caught by: memory, time
# All W at the end: short, and every activation is kept


def my_schedule():
    rows = []
    for rank in range(4):
        words = [f"F{i}" for i in range(3 - rank)]
        for i in range(8):
            if i + 3 - rank < 8:
                words.append(f"F{i + 3 - rank}")
            words.append(f"B{i}")
        rows.append(" ".join(words + [f"W{i}" for i in range(8)]))
    return rows
