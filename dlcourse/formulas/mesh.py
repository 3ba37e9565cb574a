"""What one rank of a mesh holds and sends: data x pipeline x tensor, for our GPT.

As ``dlcourse.parallel.mesh`` divides it. Matrices of the layers are cut over the tensor ranks,
layers dealt to the stages, the result copied along data. Embedding and output layer stay whole, in
the first and in the last stage.

Source: Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using
Megatron-LM", SC 2021, sections 2.3 and 3: four all-reduces of B T C numbers a layer, one message of
as many to the next stage and one back, one all-reduce of the gradients.
"""

from __future__ import annotations

from dlcourse.formulas.activations import stream_bytes
from dlcourse.formulas.sizes import GPTConfig, check_size
from dlcourse.formulas.traffic import block_bytes, wire_bytes

_LOSS = 4  # bytes of it; it is added up along pipeline and data


def stage_parameters(config: GPTConfig, *, pipeline: int, tensor: int, stage: int = 0) -> int:
    """Parameters of a rank in this stage of the pipeline, 0 for the first.

    Raises:
        ValueError: no such stage, or sizes that do not divide.
    """
    layers = _stage_layers(config, pipeline, stage)
    check_size("tensor", tensor)
    C, V, T = config.n_embd, config.vocab_size, config.block_size
    if 4 * C % tensor or C % tensor:
        raise ValueError(f"tensor={tensor} does not divide the width {C}: give a divisor of it")
    layer = (12 * C * C + 4 * C) // tensor + 6 * C  # norms and two biases are whole everywhere
    first = (V + T) * C if stage == 0 else 0
    last = V * C + 2 * C if stage == pipeline - 1 else 0
    return layers * layer + first + last


def mesh_bytes(
    config: GPTConfig,
    *,
    data: int,
    pipeline: int,
    tensor: int,
    micro_batch: int,
    micro_batches: int,
    block: int,
    stage: int = 0,
) -> dict[str, float]:
    """Bytes that a rank of this stage sends in a step, in float32, by the side of the mesh.

    Args:
        micro_batch: sequences of ``block`` tokens that go through the pipeline at a time;
            ``micro_batches`` of them are a step of each copy.

    Raises:
        ValueError: no pipeline (then the vocabulary is cut as well, which is not counted here), no
            such stage, or sizes that do not divide.
    """
    sizes = {"data": data, "micro_batch": micro_batch, "micro_batches": micro_batches}
    for name, value in (sizes | {"block": block, "pipeline": pipeline}).items():
        check_size(name, value)
    if pipeline < 2:
        raise ValueError(f"pipeline={pipeline}: give 2 or more stages")
    layers = _stage_layers(config, pipeline, stage)
    message = stream_bytes(config, micro_batch=micro_batch, block=block)
    neighbours = (stage > 0) + (stage < pipeline - 1)
    numbers = stage_parameters(config, pipeline=pipeline, tensor=tensor, stage=stage)
    in_layers = block_bytes(
        layers=layers, tokens=micro_batch * block, width=config.n_embd, world_size=tensor
    )
    return {
        "tensor": micro_batches * in_layers,
        "pipeline": micro_batches * neighbours * message
        + wire_bytes("all_reduce", _LOSS, pipeline),
        "data": wire_bytes("all_reduce", 4 * numbers + _LOSS, data),
    }


def _stage_layers(config: GPTConfig, pipeline: int, stage: int) -> int:
    check_size("pipeline", pipeline)
    if config.n_layer % pipeline:
        raise ValueError(
            f"pipeline={pipeline} does not divide the {config.n_layer} layers: give a divisor"
        )
    if type(stage) is not int or not 0 <= stage < pipeline:
        raise ValueError(f"stage={stage}: there are stages 0 to {pipeline - 1}")
    return config.n_layer // pipeline
