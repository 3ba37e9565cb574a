# caught by: time
# 1F1B, with W right behind B


def my_schedule():
    rows = []
    for rank in range(4):
        words = [f"F{i}" for i in range(3 - rank)]
        for i in range(8):
            if i + 3 - rank < 8:
                words.append(f"F{i + 3 - rank}")
            words += [f"B{i}", f"W{i}"]
        rows.append(" ".join(words))
    return rows
