# caught by: autocast, master
# The slogan


def bytes_between_steps(num_parameters, way):
    return num_parameters * (16 if way == "float32" else 8)
