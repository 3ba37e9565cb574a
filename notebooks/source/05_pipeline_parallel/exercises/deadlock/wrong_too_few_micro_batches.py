# caught by: complete
# What hangs is left out


def repaired():
    return ["F0 F1 F2 BW0 BW1 BW2"] * 3
