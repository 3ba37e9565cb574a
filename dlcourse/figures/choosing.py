"""The figures and tables of lesson 15, each one call; what they rest on is checked, and said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dlcourse.figures.bakeoff import show_bakeoff
from dlcourse.figures.held import Held, Said, Together, held, largest
from dlcourse.figures.tables import Table
from dlcourse.formulas.goodput import young_interval
from dlcourse.formulas.mesh import mesh_bytes, stage_parameters
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.measure.sides import sent_by_side
from dlcourse.words.strings import t
from dlcourse.words.units import apart_text, human_bytes

if TYPE_CHECKING:
    from dlcourse.measure.run import Run

OURS = GPTConfig(block_size=64, n_layer=4, n_head=4, n_embd=64)  # the model of the lesson
BATCH = 8  # sequences of a copy in a step
MICRO_BATCHES = 4  # into which they are cut
SIDES = ("tensor", "pipeline", "data")
COPY = {"pipeline": 2, "tensor": 2}  # the ranks of one copy
WRONG = 3  # copies of the mesh that does not multiply out
# Minutes: to write a checkpoint, and between two failures of Llama 3's 16,384 GPUs
FAILING = {"checkpoint": 1.0, "mtbf": 60 * 3.09}
_STATES = ("parameters", "gradients", "optimizer_state")
# Of thousands: lesson 05's job, a 7B model in 8 stages of 8 tensor ranks, 16 times
THOUSANDS = {"data": 16, "pipeline": 8, "tensor": 8}


def check_ranks(num_ranks: int) -> None:
    """Refuse, before any starts, a number of ranks that cannot run the whole lesson.

    Raises:
        ValueError: copies of 2 stages x 2 tensor ranks do not come out even, or they are the mesh
            that the lesson shows being refused.
    """
    each = math.prod(COPY.values())
    if num_ranks < each or num_ranks % each:
        raise ValueError(
            f"num_ranks={num_ranks}: each copy on the mesh of this lesson has "
            f"{' x '.join(f'{name}={size}' for name, size in COPY.items())} ranks; give a multiple "
            f"of {each}, such as {each} or {2 * each}"
        )
    if num_ranks == WRONG * each:
        raise ValueError(
            f"num_ranks={num_ranks}: this lesson has a mesh of {num_ranks} ranks refused, and here "
            f"it would not be; give another multiple of {each}, such as {2 * each}"
        )


def batch_of_ours() -> dict[str, int]:
    """Sizes of the lesson's step, as the formulas take them."""
    return {
        "micro_batch": BATCH // MICRO_BATCHES,
        "micro_batches": MICRO_BATCHES,
        "block": OURS.block_size,
    }


def tensor_over_pipeline() -> float:
    """Bytes that a rank of the first stage sends along tensor, over those along pipeline."""
    sent = mesh_bytes(OURS, data=2, pipeline=2, tensor=2, **batch_of_ours())
    return sent["tensor"] / sent["pipeline"]


def first_stage_bytes() -> int:
    """Parameters of the first of 1,024 ranks, in bytes."""
    sides = {name: THOUSANDS[name] for name in ("pipeline", "tensor")}
    return 4 * stage_parameters(MODELS["7b"], **sides)


def minutes_between_checkpoints() -> float:
    """Young's interval for ``FAILING``."""
    return young_interval(**FAILING)


def show_grid(places: Sequence[Sequence[int]], sides: Mapping[str, int]) -> Table:
    """Where each rank stands on the mesh, and what it has of model and batch.

    Args:
        places: of each rank, its coordinates along data, pipeline, tensor.
        sides: how many ranks there are along each.
    """
    layers, heads = OURS.n_layer // sides["pipeline"], OURS.n_head // sides["tensor"]
    rows = []
    for rank, (data, pipeline, tensor) in enumerate(places):
        parts = (
            _range(pipeline * layers, layers),
            _range(tensor * heads, heads),
            _range(data * BATCH, BATCH),
        )
        rows.append([str(rank), str(data), str(pipeline), str(tensor), *parts])
    keys = ("rank", "data", "pipeline", "tensor", "layers", "heads", "sequences")
    return Table([t(f"choosing.grid.{key}") for key in keys], rows)


def side_ratio(run: Run, groups: Mapping[str, str]) -> float:
    """Bytes that rank 0 sent along tensor in a run, over those along pipeline."""
    sent = _sent(run, groups)
    return sent["tensor"] / sent["pipeline"]


def show_step(
    run: Run,
    groups: Mapping[str, str],
    sides: Mapping[str, int],
    planned: Mapping[str, float],
) -> Together:
    """Rank 0's bytes by side beside the formula, its memory beside the planner's.

    Args:
        run: one step, in all ranks.
        groups: side -> name of rank 0's group.
        planned: bytes by category, see ``dlcourse.plan.own_mesh``.
    """
    memory = run.memory.ranks[0]
    wanted = mesh_bytes(OURS, **sides, **batch_of_ours())
    return _beside(_sent(run, groups), wanted, memory, planned)


def show_thousands(record: Mapping[str, Any], planned: Mapping[str, float]) -> Together:
    """The same of one rank of thousands.

    Args:
        record: of ``dlcourse.plan.scale.scale(...)``.
    """
    job = record["job"]
    sides = {name: job[name] for name in SIDES}
    batch = {name: job[name] for name in ("micro_batch", "micro_batches", "block")}
    wanted = mesh_bytes(MODELS[job["model"]], **sides, **batch)
    sent = sent_by_side(record["comm"], record["sides"])
    return _beside(sent, wanted, record["memory"], planned, how="counted")


def _sent(run: Run, groups: Mapping[str, str]) -> dict[str, float]:
    """Bytes that rank 0 sent, by the side of the mesh."""
    return sent_by_side((call for call in run.comm.calls if call["rank"] == 0), groups)


def _beside(
    sent: Mapping[str, float],
    wanted: Mapping[str, float],
    memory: Mapping[str, Any],
    planned: Mapping[str, float],
    how: str = "measured",
) -> Together:
    traffic = [
        [
            t(f"choosing.side.{side}"),
            t(f"choosing.travels.{side}"),
            human_bytes(sent[side]),
            human_bytes(wanted[side]),
        ]
        for side in SIDES
    ]
    has = {name: memory["end"][name] for name in _STATES}
    has["activations"] = memory["peaks"]["activations"]
    states = [
        [t(f"category.{name}"), human_bytes(size), human_bytes(planned[name])]
        for name, size in has.items()
    ]
    off = {name: 100 * abs(planned[name] / size - 1) for name, size in has.items()}
    heads = [t(f"choosing.traffic.{key}") for key in ("side", "what", how, "formula")]
    return Together(
        Table(heads, traffic),
        _held("bytes", largest(abs(sent[side] - wanted[side]) for side in SIDES), allowed=1),
        Table([t(f"choosing.memory.{key}") for key in ("what", how, "planned")], states),
        _held("states", largest(off[name] for name in _STATES), allowed=0.1, unit="%"),
        _held("activations", off["activations"], allowed=5, unit="%"),
    )


def show_equal(apart: Mapping[str, float]) -> Together:
    """How far all ranks and one process are apart: loss, gradients, parameters after five steps."""
    rows = [[t(f"choosing.equal.{name}"), apart_text(value)] for name, value in apart.items()]
    heads = [t("choosing.equal.what"), t("choosing.equal.off")]
    return Together(
        Table(heads, rows),
        _held("equal", largest((apart["loss"], apart["gradients"])), allowed=1e-5),
        _held("steps", apart["steps"], allowed=1e-4),
    )


def show_recorded(record: Mapping[str, Any]) -> Together:
    """The bake-off of another day: its table, then its machine and date.

    Args:
        record: of ``dlcourse.peers.bakeoff.recorded_bakeoff()``.
    """
    words = {name: str(record[name]) for name in ("machine", "date", "command")}
    return Together(show_bakeoff(record["rows"], record), Said(t("choosing.recorded", **words)))


def _range(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _held(name: str, difference: float, *, allowed: float, unit: str = "") -> Held:
    what = t(f"choosing.held.{name}")
    because = t(f"choosing.held.{name}.because")
    return held(what, abs(difference), allowed=allowed, because=because, unit=unit)
