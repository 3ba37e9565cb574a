# caught by: small, lesson, tight
# As many in all ranks


def my_line(rank, w, m):
    ahead = w - 1
    words = [f"F{i}" for i in range(ahead)]
    for i in range(m):
        if i + ahead < m:
            words.append(f"F{i + ahead}")
        words.append(f"BW{i}")
    return " ".join(words)
