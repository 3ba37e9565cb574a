def bytes_a_parameter(way, stage, ranks):
    p, g, s = (4, 4, 8) if way == "float32" else (2, 2, 12)
    if stage >= 1:
        s /= ranks
    if stage >= 2:
        g /= ranks
    if stage >= 3:
        p /= ranks
    return p + g + s
