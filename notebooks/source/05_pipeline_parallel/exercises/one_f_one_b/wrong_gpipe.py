# caught by: small, lesson, tight, alone


def my_line(rank, w, m):
    return " ".join([f"F{i}" for i in range(m)] + [f"BW{i}" for i in range(m)])
