# caught by: deep, alone


def fewest(p, limit):
    return int((p - 1) * (1 - limit) / limit)
