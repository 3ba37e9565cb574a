# caught by: small, lesson, tight
# Upside down: deadlock


def my_line(rank, w, m):
    ahead = rank
    words = [f"F{i}" for i in range(ahead)]
    for i in range(m):
        if i + ahead < m:
            words.append(f"F{i + ahead}")
        words.append(f"BW{i}")
    return " ".join(words)
