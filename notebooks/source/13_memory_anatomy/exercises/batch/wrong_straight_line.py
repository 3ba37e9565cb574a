# caught by: large, small, stairs
# A line through two points


def largest(need, memory):
    slope = need(2) - need(1)
    return max(0, int((memory - need(1)) // max(slope, 1)) + 1)
