# caught by: autocast
# Autocast's copies of weights do not outlive the step


def bytes_between_steps(num_parameters, way):
    each = {
        "float32": 4 + 4 + 8,
        "autocast": 4 + 4 + 8 + 2,
        "master": 2 + 2 + 12,
        "bfloat16": 2 + 2 + 4,
    }
    return num_parameters * each[way]
