# caught by: calls, bytes
# 24: the stub

from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear


def cut(block):
    attention, mlp = block.attention, block.mlp
    attention.n_head //= world_size
    attention.q = ColumnParallelLinear(attention.q)
    attention.k = ColumnParallelLinear(attention.k)
    attention.v = ColumnParallelLinear(attention.v)
    attention.proj = RowParallelLinear(attention.proj)
    mlp.up, mlp.down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)
