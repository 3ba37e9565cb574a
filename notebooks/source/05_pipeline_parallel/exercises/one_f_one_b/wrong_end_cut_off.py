# caught by: small, lesson, tight
# The end is missing


def my_line(rank, w, m):
    ahead = w - 1 - rank
    words = [f"F{i}" for i in range(ahead)]
    for i in range(m - ahead):
        words += [f"F{i + ahead}", f"BW{i}"]
    return " ".join(words)
