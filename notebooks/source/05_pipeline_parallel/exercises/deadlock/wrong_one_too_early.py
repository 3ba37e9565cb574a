# caught by: memory, time
# Only rank 0 mended: rank 1 holds three


def repaired():
    return [
        "F0 F1 F2 BW0 F3 BW1 BW2 BW3",
        "F0 F1 F2 BW0 F3 BW1 BW2 BW3",
        "F0 BW0 F1 BW1 F2 BW2 F3 BW3",
    ]
