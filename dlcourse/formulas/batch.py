"""The three numbers of a batch: DeepSpeed takes any two of them, or one, and derives the rest.

    train_batch_size = train_micro_batch_size_per_gpu x gradient_accumulation_steps x world_size

Source: ``DeepSpeedConfig._set_batch_related_parameters`` and ``_batch_assertion`` of DeepSpeed
0.19, which round down and then refuse what does not multiply out.
"""

from __future__ import annotations

from dlcourse.formulas.sizes import check_size


def derived_batch(
    batch: int | None, micro_batch: int | None, accumulate: int | None, *, world_size: int
) -> tuple[int, int, int]:
    """The whole batch, micro-batch and accumulation that follow from those that are given.

    Args:
        batch: sequences of a step in all ranks; None where it is not given.
        micro_batch, accumulate: the same for a rank's micro-batch, and for their number.

    Raises:
        ValueError: neither ``batch`` nor ``micro_batch``; or numbers that do not multiply out.
    """
    check_size("world_size", world_size)
    given = {"batch": batch, "micro_batch": micro_batch, "accumulate": accumulate}
    for name, value in given.items():
        if value is not None:
            check_size(name, value)
    if batch is None and micro_batch is None:
        raise ValueError("batch and micro_batch are both None: give one of them")
    if batch is None:
        assert micro_batch is not None
        accumulate = 1 if accumulate is None else accumulate
        batch = micro_batch * accumulate * world_size
    elif micro_batch is None:
        accumulate = 1 if accumulate is None else accumulate
        micro_batch = batch // world_size // accumulate if accumulate > 0 else 0
    elif accumulate is None:
        accumulate = batch // micro_batch // world_size if micro_batch > 0 else 0
    if min(batch, micro_batch, accumulate) < 1 or batch != micro_batch * accumulate * world_size:
        raise ValueError(
            f"batch={batch} is not micro_batch={micro_batch} x accumulate={accumulate} x "
            f"world_size={world_size}"
        )
    return batch, micro_batch, accumulate


def fitting_worlds(
    batch: int | None, micro_batch: int | None, accumulate: int | None, *, up_to: int = 4096
) -> list[int]:
    """The numbers of ranks, up to ``up_to``, with which ``derived_batch`` works out."""
    return [
        world_size
        for world_size in _candidates(batch, up_to)
        if _fits(batch, micro_batch, accumulate, world_size)
    ]


def _candidates(batch: int | None, up_to: int) -> list[int]:
    if batch is None:
        return list(range(1, up_to + 1))
    return [n for n in range(1, min(batch, up_to) + 1) if batch % n == 0]


def _fits(
    batch: int | None, micro_batch: int | None, accumulate: int | None, world_size: int
) -> bool:
    try:
        derived_batch(batch, micro_batch, accumulate, world_size=world_size)
    except ValueError:
        return False
    return True
