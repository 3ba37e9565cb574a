# caught by: small, lesson, tight, alone
# One forward too many in front: an activation too many


def my_line(rank, w, m):
    ahead = w - rank
    words = [f"F{i}" for i in range(ahead)]
    for i in range(m):
        if i + ahead < m:
            words.append(f"F{i + ahead}")
        words.append(f"BW{i}")
    return " ".join(words)
