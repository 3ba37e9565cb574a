# caught by: memory
# What autocast does by itself


def project(x, q, k, v):
    return F.linear(x, q), F.linear(x, k), F.linear(x, v)
