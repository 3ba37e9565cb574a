"""What lesson 08 shows of experts that are cut too, and of experts with a capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from dlcourse.figures.expert_parallel import EXPERTS, TOKENS, TOP_K, WIDTH
from dlcourse.figures.held import Together, held, largest
from dlcourse.figures.tables import Table
from dlcourse.formulas.traffic import count_bytes, expert_trip_bytes, wire_bytes
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes

if TYPE_CHECKING:
    from dlcourse.measure.run import Run

Capacities = Mapping[float | None, Mapping[str, float]]  # capacity factor -> what it made of a step


def cut_bytes(*, expert: int, tensor: int) -> dict[str, float]:
    """Bytes that a rank sends in forward and backward of the lesson's layer, by collective.

    Args:
        expert: ranks that share the experts. tensor: ranks that share each of them, and tokens.

    Rows travel four times along "expert", and are added up twice along "tensor": what experts say,
    and the gradients of what they were given. So are the gradients of the experts' last biases.
    """
    rows = 4 * TOKENS * TOP_K * WIDTH  # that a rank's experts get, on average
    biases = 4 * EXPERTS // expert * WIDTH
    trip = expert_trip_bytes(TOKENS, width=WIDTH, top_k=TOP_K, world_size=expert)
    return {
        "all_to_all": 4 * trip,
        "all_reduce": wire_bytes("all_reduce", 2 * rows + biases, tensor),
        "all_gather": count_bytes(EXPERTS, expert),
    }


def show_cut_experts(run: Run, apart: Mapping[str, float]) -> Together:
    """What each group carries beside the formula, as a mean over the ranks; and one process.

    Args:
        run: forward and backward of the layer, over (ranks / 2) x 2 ranks.
        apart: largest difference to one process, as a share of the largest number.
    """
    ranks = [rank["ops"] for rank in run.comm.ranks]
    formulas = cut_bytes(expert=len(ranks) // 2, tensor=2)
    rows = []
    for name, formula in formulas.items():
        calls = ranks[0].get(name, {"calls": 0})["calls"]
        sent = sum(ops[name]["wire_bytes"] for ops in ranks if name in ops) / len(ranks)
        side = t(f"expert_parallel.cut.{'tensor' if name == 'all_reduce' else 'expert'}")
        what = t(f"expert_parallel.cut.{name}")
        rows.append([side, name, what, str(calls), human_bytes(sent), human_bytes(formula)])
    keys = ("group", "op", "what", "calls", "sent", "formula")
    heads = [t(f"expert_parallel.cut.{key}") for key in keys]
    summed = sum(ops["all_reduce"]["wire_bytes"] for ops in ranks) / len(ranks)
    off = largest(apart.values())
    return Together(
        Table(heads, rows),
        held(
            t("expert_parallel.held.cut_bytes"),
            abs(summed - formulas["all_reduce"]),
            allowed=0,
            because=t("expert_parallel.held.cut_bytes.because"),
        ),
        held(
            t("expert_parallel.held.cut"),
            off,
            allowed=1e-5,
            because=t("expert_parallel.held.cut.because"),
        ),
    )


def show_capacity_over_ranks(found: Sequence[Mapping[str, Capacities]]) -> Table:
    """What a capacity drops, sends and waits for, with the routing of trained routers.

    Args:
        found: of each rank, by routing ("natural", "loss") and capacity factor, ``None`` (no
            capacity) last: "dropped" (share of all copies), "sent" (bytes that this rank sent in
            forward), "tokens" and "width" (of a rank, of a token), "fullest" (rows of the fullest
            rank over the mean without capacity), "seconds" (of the slowest rank), "loss" (the
            mean over the ranks).
    """
    rows = []
    for kind, of_kind in found[0].items():
        dropped = [row["dropped"] for row in of_kind.values()]
        assert dropped == sorted(dropped, reverse=True) and not dropped[-1], dropped
        for factor, row in of_kind.items():
            sent = fmean(one[kind][factor]["sent"] for one in found)
            trip = expert_trip_bytes(
                int(row["tokens"]), width=int(row["width"]), top_k=TOP_K, world_size=len(found)
            )
            rows.append(
                [
                    t(f"expert_parallel.balance.{kind}") if factor == next(iter(of_kind)) else "",
                    t("expert_parallel.capacity.dropless") if factor is None else str(factor),
                    f"{row['dropped']:.1%}",
                    human_bytes(sent),
                    "–" if factor is None else human_bytes(factor * 2 * trip),
                    f"{row['fullest']:.2f} ×",
                    f"{row['seconds'] / of_kind[None]['seconds']:.2f} ×",
                    f"{row['loss']:.3f}",
                ]
            )
    keys = ("factor", "dropped", "sent", "places", "fullest", "seconds", "loss")
    heads = [t(f"expert_parallel.capacity.{key}") for key in keys]
    return Table([t("expert_parallel.balance"), *heads], rows)
