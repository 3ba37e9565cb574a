"""What a training step costs in closed form: bytes, FLOPs and time. Nothing here needs torch.

    sizes.py                the model's sizes, its layers, and sizes of published models
    parameters.py           numbers that training changes
    architectures.py        dense, MoE, sparse, hybrid: parameters in all and for a token, FLOPs
    recipe.py               how a model is trained: precision, optimizer, accumulation, ZeRO, ...
    batch.py                the three numbers of a batch, and which worlds divide them
    learning_rate.py        the rate of each step, by DeepSpeed's schedules
    states.py               bytes of parameters, gradients and optimizer state; ZeRO; offload
    activations.py          bytes that autograd keeps, and the peak of them
    checkpoint_segments.py  where checkpoints go, and the square root of n
    flops.py                FLOPs of attention, of a step, of a token
    traffic.py              bytes sent: collectives, algorithms such as the ring all-reduce, ZeRO
    collective_time.py      alpha-beta: seconds of a collective, and its bus bandwidth
    benchmark_plan.py       what to benchmark before a job runs, and how long that takes
    bubbles.py              idle time of a pipeline
    goodput.py              what failures leave of a long run: checkpoints, spares, stragglers
    devices.py              what each device needs where layers are divided over devices
    memory.py               all memory and all cost of a step, put together from the others

The arguments have one name everywhere:

    config        a ``GPTConfig``, see ``sizes.py``
    recipe        a ``Recipe``, see ``recipe.py``
    world_size    ranks that take part
    stage         of ZeRO, 0 is without
    precision     "float32", "autocast", "master", "bfloat16"
    micro_batch   sequences that a rank works on at a time
    accumulate    micro-batches of a step
    sequences     of a rank in a step: micro_batch times accumulate
    block         tokens of a sequence
    nbytes        bytes of a whole buffer

Each formula is compared with what is measured: the ledger, the wire, or the simulation
(``tests/test_formulas.py`` says where).
"""
