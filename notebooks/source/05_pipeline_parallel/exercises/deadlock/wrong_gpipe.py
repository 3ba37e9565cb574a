# caught by: memory
# GPipe: no deadlock, and all activations


def repaired():
    return ["F0 F1 F2 F3 BW0 BW1 BW2 BW3"] * 3
