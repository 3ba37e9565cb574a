# caught by: stage1, stage2
# Every stage divides everything


def bytes_a_parameter(way, stage, ranks):
    return 16 / ranks if stage else 16
