from dlcourse.parallel.tensor import ColumnParallelLinear, RowParallelLinear, copy_to


def cut(block):
    attention, mlp = block.attention, block.mlp
    attention.n_head //= world_size
    attention.q = ColumnParallelLinear(attention.q, enter=None)
    attention.k = ColumnParallelLinear(attention.k, enter=None)
    attention.v = ColumnParallelLinear(attention.v, enter=None)
    attention.register_forward_pre_hook(lambda module, args: (copy_to(args[0]),))
    attention.proj = RowParallelLinear(attention.proj)
    mlp.up, mlp.down = ColumnParallelLinear(mlp.up), RowParallelLinear(mlp.down)
