# caught by: large, small, stairs, exact
# Powers of two only


def largest(need, memory):
    n = 1
    while need(n) <= memory:
        n *= 2
    return n // 2
