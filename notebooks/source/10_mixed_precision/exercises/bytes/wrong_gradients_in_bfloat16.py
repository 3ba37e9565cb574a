# caught by: autocast
# Gradients of float32 parameters taken for 16-bit ones


def bytes_between_steps(num_parameters, way):
    each = {
        "float32": 4 + 4 + 8,
        "autocast": 4 + 2 + 8,
        "master": 2 + 2 + 12,
        "bfloat16": 2 + 2 + 4,
    }
    return num_parameters * each[way]
