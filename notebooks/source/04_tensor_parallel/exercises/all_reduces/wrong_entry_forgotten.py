# caught by: gradients, calls
# 12: nobody sums for attention

from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear


def cut(block):
    attention, mlp = block.attention, block.mlp
    attention.n_head //= world_size
    attention.q = ColumnParallelLinear(attention.q, enter=None)
    attention.k = ColumnParallelLinear(attention.k, enter=None)
    attention.v = ColumnParallelLinear(attention.v, enter=None)
    attention.proj = RowParallelLinear(attention.proj)
    mlp.up, mlp.down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)
