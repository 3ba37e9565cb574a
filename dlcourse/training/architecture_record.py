"""What ``dlcourse bench architectures`` has recorded, read under three contracts.

Which architecture is better depends on what is held equal:

- "active": as many parameters for a token, so as many FLOPs: all but "dense_total";
- "total": as many parameters in all: "dense_total" and "moe";
- "seconds": each is read after as many steps as fit into the time that the MoE's take.

Imports no torch.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlcourse.corpus import course_folder

LAST_LOOKS = 3  # a loss is the mean of so many, as one depends on the last batches


def load(path: Path | None = None) -> dict:
    """The record: machine, date, sizes, seconds of a step, and every run by its name."""
    path = path or course_folder() / "data" / "architectures.json"
    return json.loads(path.read_text(encoding="utf-8"))


def loss_at(run: dict, step: float) -> float:
    """Held-out loss after ``step`` steps: the mean of the last looks until then."""
    until = [loss for at, loss in zip(run["steps"], run["loss"]["mean"], strict=True) if at <= step]
    return statistics.fmean(until[-LAST_LOOKS:])


def contracts(data: dict) -> dict[str, dict[str, dict[str, float]]]:
    """Held-out loss under each contract: mean over the seeds, and spread (largest less smallest).

    "difference" is to the dense model under the same contract, seed by seed, since all models see
    the same text in the same order: its mean, and its spread.
    """
    budget = data["steps"] * data["seconds"]["moe"]
    chosen = {
        "active": ["dense", "moe", "sparse", "hybrid_moe", "hybrid_recurrent"],
        "total": ["dense_total", "moe"],
        "seconds": list(data["seconds"]),
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for contract, names in chosen.items():
        losses = {}
        for name in names:
            steps = budget / data["seconds"][name] if contract == "seconds" else data["steps"]
            losses[name] = [
                loss_at(data["runs"][f"contract/{name}/{s}"], steps) for s in data["seeds"]
            ]
        found[contract] = {
            name: summary(values, losses[names[0]]) for name, values in losses.items()
        }
    return found


def short_runs(data: dict, group: str) -> dict[str, dict[str, float]]:
    """The runs of "balance" (top-1) or "capacity" (top-2) after ``short_steps``.

    Differences are to no balance, and to no limit: that is the MoE of the contracts, read early.
    """
    first = {"balance": "balance/None", "capacity": "contract/moe"}[group]
    names = [n.rsplit("/", 1)[0] for n in data["runs"] if n.startswith(f"{group}/")]
    found: dict[str, dict[str, float]] = {}
    without: list[float] = []
    for name in dict.fromkeys([first, *names]):
        runs = [data["runs"][f"{name}/{seed}"] for seed in data["seeds"]]
        losses = [loss_at(run, data["short_steps"]) for run in runs]
        without = without or losses
        count = sum(step <= data["short_steps"] for step in runs[0]["steps"])
        found["None" if name == first else name.split("/")[1]] = summary(losses, without) | {
            "busiest": statistics.fmean(
                max(max(shares[:count]) for shares in run["busiest"].values()) for run in runs
            ),
            "busiest_at_end": statistics.fmean(
                max(shares[count - 1] for shares in run["busiest"].values()) for run in runs
            ),
            "dropped": statistics.fmean(statistics.fmean(run["dropped"][:count]) for run in runs),
        }
    return found


def router_runs(data: dict) -> dict[str, dict[str, float]]:
    """The runs of ``ROUTERS`` in ``dlcourse.bench.architectures``, top-2, after ``short_steps``.

    Of each: "loss" and what ``summary`` says of it, with differences to no balance, seed by seed;
    "busiest", the share of the copies that the busiest expert of the last layer takes at the end;
    of that layer "largest", the largest score, and "log_sum", which the z-loss squares; "seeds".

    Raises:
        KeyError: not recorded yet.
    """
    found: dict[str, dict[str, float]] = {}
    without = [_last_loss(data, "none", seed) for seed in data["seeds"]]
    names = [name for name in data["runs"] if name.startswith("router/")]
    for kind in dict.fromkeys(name.split("/")[1] for name in names):
        seeds = [seed for seed in data["seeds"] if f"router/{kind}/{seed}" in names]
        runs = [data["runs"][f"router/{kind}/{seed}"] for seed in seeds]
        losses = [_last_loss(data, kind, seed) for seed in seeds]
        found[kind] = summary(losses, without[: len(losses)]) | {
            "busiest": statistics.fmean(_last_layer(run["busiest"])[-1] for run in runs),
            "seeds": len(seeds),
        }
        scores = [_last_layer(run["scores"]) for run in runs]
        for name in ("largest", "log_sum"):
            found[kind][name] = statistics.fmean(of_run[name] for of_run in scores)
    return found


def _last_loss(data: dict, kind: str, seed: int) -> float:
    return loss_at(data["runs"][f"router/{kind}/{seed}"], data["short_steps"])


def _last_layer(by_layer: dict[str, Any]) -> Any:
    return by_layer[max(by_layer, key=int)]


def long_runs(data: dict) -> dict[str, float]:
    """Held-out loss of three models after ``long_steps``, with one seed."""
    names = [name for name in data["runs"] if name.startswith("long/")]
    steps = data["long_steps"]
    return {name.split("/")[1]: loss_at(data["runs"][name], steps) for name in names}


def summary(losses: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    """Mean and spread over the seeds, and of the differences to the first, seed by seed."""
    differences = [mine - theirs for mine, theirs in zip(losses, first, strict=True)]
    return {
        "loss": statistics.fmean(losses),
        "spread": max(losses) - min(losses),
        "difference": statistics.fmean(differences),
        "difference_spread": max(differences) - min(differences),
    }
