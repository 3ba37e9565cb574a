"""Parallelisms: how a model, its batch and its state are spread over ranks.

Names are torch's. A function of tensors takes a ``group``, as those of ``torch.distributed`` do; a
wrapper of a module, or a function of one, takes a ``process_group``, as DistributedDataParallel
does. None is the group of all ranks.
"""
