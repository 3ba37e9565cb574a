def my_schedule():
    rows = []
    for rank in range(4):
        ahead, words = 3 - rank, [f"F{i}" for i in range(3 - rank)]
        for i in range(8):
            if i + ahead < 8:
                words.append(f"F{i + ahead}")
            words.append(f"B{i}")
            if i >= rank:
                words.append(f"W{i - rank}")
        rows.append(" ".join(words + [f"W{i}" for i in range(8 - rank, 8)]))
    return rows
