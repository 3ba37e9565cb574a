# caught by: unchanged
# The lesson's ring works inside x.

from dlcourse.collectives.ring import ring_reduce_scatter


def reduce_scatter(x):
    return ring_reduce_scatter(x).clone()
