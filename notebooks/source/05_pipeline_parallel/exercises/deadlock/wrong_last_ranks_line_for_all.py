# caught by: time
# One micro-batch after the other: no deadlock, and slow


def repaired():
    return ["F0 BW0 F1 BW1 F2 BW2 F3 BW3"] * 3
