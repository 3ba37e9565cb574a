# caught by: stage1, stage2, stage3


def bytes_a_parameter(way, stage, ranks):
    return 16
