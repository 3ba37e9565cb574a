# caught by: master
# Moments in 16 bits beside the master copy


def bytes_between_steps(num_parameters, way):
    each = {
        "float32": 4 + 4 + 8,
        "autocast": 4 + 4 + 8,
        "master": 2 + 2 + 8,
        "bfloat16": 2 + 2 + 4,
    }
    return num_parameters * each[way]
