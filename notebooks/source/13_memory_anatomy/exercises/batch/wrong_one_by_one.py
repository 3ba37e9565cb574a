# caught by: large, small, stairs
# One by one


def largest(need, memory):
    n = 0
    while need(n + 1) <= memory:
        n += 1
    return n
