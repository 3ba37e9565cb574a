# caught by: large, small, stairs, exact
# In proportion to one sequence


def largest(need, memory):
    return int(memory // need(1))
