"""Dense, MoE, sparse and hybrid trained side by side, three seeds: the run that lesson 07 rests on.

And what keeps a router from collapsing, or its scores small, what it costs in loss, and what
without it (``ROUTERS``).

Takes about 45 minutes of one core, so it is recorded, in ``data/architectures.json``. Each training
is kept there as soon as it is finished: stopped and started again, the rest goes on, and with all
there nothing is trained. Delete the file to make all of it anew.

What is compared, and how: ``dlcourse/training/architecture_record.py``. How long a step takes is
measured in turns, one step of each, in seconds that the process has on a core.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from dlcourse.bench._course_text import renew
from dlcourse.bench._options import parser_of
from dlcourse.course.catalog import course_root
from dlcourse.formulas.architectures import (
    active_parameters,
    architecture_flops_per_token,
    compared_architectures,
    total_parameters,
    training_state_bytes,
)
from dlcourse.formulas.sizes import ArchitectureConfig
from dlcourse.machine import cores
from dlcourse.training.architecture_record import contracts, long_runs, loss_at, short_runs

BASE = ArchitectureConfig(n_layer=2, n_head=4, n_embd=64, block_size=96, num_blocks=2)
STEPS, SHORT_STEPS, SEEDS = 1000, 300, (0, 1, 2)
LONG_STEPS, LONG = 2000, ("dense", "moe", "dense_total")  # one seed: does the order stay?
BATCH_SIZE, BLOCK, LOOK_EVERY, LR = 12, 96, 50, 3e-3
TOP_1 = replace(BASE, feed_forwards=("moe",), top_k=1)
FACTORS = (0.5, 1.0, 1.25, 2.0)
# With the MoE of the contracts, top-2, whose router without balance collapses and stays so. The
# last two begin with large scores, and have one seed: without them the z-loss has little to do
_LARGE = dict(balance="loss", router_scale=50.0)
ROUTERS: dict[str, dict[str, Any]] = {
    "none": dict(balance=None),
    "loss": dict(balance="loss"),
    "bias": dict(balance="bias", bias_rate=0.01),
    "loss_z": dict(balance="loss", z_weight=1e-3),
    "large": _LARGE,
    "large_z": _LARGE | dict(z_weight=1e-3),
}


def step_seconds(rounds: int = 40) -> dict[str, list[float]]:
    """Seconds of a training step of each architecture, taken in turns, on one core."""
    import torch

    from dlcourse.corpus import KindsCorpus
    from dlcourse.models.architectures import ArchitectureGPT
    from dlcourse.training.architectures import extra_loss

    corpus = KindsCorpus()
    models = {name: ArchitectureGPT(c) for name, c in compared_architectures(BASE).items()}
    optimizers = {
        name: torch.optim.AdamW(m.parameters(), lr=LR, fused=True) for name, m in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    warm_up = 5
    for step in range(rounds + warm_up):
        tokens, targets = corpus.batch(step, micro_batch=BATCH_SIZE, block=BLOCK)
        for name, model in models.items():
            start = time.process_time()
            optimizers[name].zero_grad()
            (model(tokens, targets) + extra_loss(model, balance=0.01)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[name].step()
            if step >= warm_up:
                seconds[name].append(time.process_time() - start)
    return seconds


def train_one(config: ArchitectureConfig, *, steps: int, seed: int, **options: Any) -> dict:
    """One training, thinned: every look, and losses and loads at the same steps.

    options: of ``dlcourse.training.architectures.train``, what balances the routers.
    """
    from dlcourse.training.architectures import train

    result = train(
        config,
        steps=steps,
        **options,
        batch_size=BATCH_SIZE,
        block=BLOCK,
        lr=LR,
        seed=seed,
        look_every=LOOK_EVERY,
    )
    looks = result["looks"]
    at = [look["step"] for look in looks]

    def means(values: list[float]) -> list[float]:
        return [round(statistics.fmean(values[a:b]), 4) for a, b in zip([0, *at], at, strict=False)]

    shown = [look for look in looks if look["step"] in (50, SHORT_STEPS, steps)]
    return {
        "steps": at,
        "train_loss": means(result["losses"]),
        "loss": {
            kind: [round(look["loss"][kind], 4) for look in looks] for kind in looks[0]["loss"]
        },
        "busiest": {layer: means(shares) for layer, shares in result["busiest"].items()},
        "dropped": means(result["dropped"]),
        "scores": {
            layer: {name: round(value, 3) for name, value in scores.items()}
            for layer, scores in looks[-1]["scores"].items()
        },
        "load": {
            look["step"]: {
                layer: {k: [round(s, 3) for s in shares] for k, shares in kinds.items()}
                for layer, kinds in look["load"].items()
            }
            for look in shown
        },
    }


def plan(seconds: dict[str, float]) -> dict[str, Callable[[], dict]]:
    """Every training by its name, in the order in which they are made."""
    configs = compared_architectures(BASE)
    work: dict[str, Callable[[], dict]] = {}

    def add(
        name: str, config: ArchitectureConfig, steps: int, balance: str | None, **more: Any
    ) -> None:
        seed = int(name.rsplit("/", 1)[1])
        work[name] = lambda: train_one(config, steps=steps, seed=seed, balance=balance, **more)

    for seed in SEEDS:
        for name, config in configs.items():
            fit = ceil(STEPS * seconds["moe"] / seconds[name] / LOOK_EVERY) * LOOK_EVERY
            steps = max(STEPS, fit) if name != "dense_total" else STEPS
            add(f"contract/{name}/{seed}", config, steps, "loss")
        for balance in (None, "loss", "bias"):
            add(f"balance/{balance}/{seed}", TOP_1, SHORT_STEPS, balance)
        for factor in FACTORS:
            config = replace(configs["moe"], capacity_factor=factor)
            add(f"capacity/{factor}/{seed}", config, SHORT_STEPS, "loss")
    for name in LONG:
        add(f"long/{name}/{SEEDS[0]}", configs[name], LONG_STEPS, "loss")
    for seed in SEEDS:
        for name, options in ROUTERS.items():
            if seed == SEEDS[0] or "router_scale" not in options:
                add(f"router/{name}/{seed}", configs["moe"], SHORT_STEPS, **options)
    return work


def sizes() -> dict[str, dict[str, float]]:
    """By formula: parameters, those a token uses, FLOPs of a token, bytes of training's states."""
    return {
        name: {
            "parameters": total_parameters(config),
            "active": active_parameters(config),
            "flops_per_token": architecture_flops_per_token(config, block=BLOCK),
            "state_bytes": sum(training_state_bytes(config).values()),
        }
        for name, config in compared_architectures(BASE).items()
    }


def made_by() -> dict[str, str]:
    """Machine and date, of the whole record and of each run: some were added later."""
    import torch

    torch_version = torch.__version__.split("+")[0]
    machine = f"{cores()} CPU cores, 1 thread, torch {torch_version}"
    return {"machine": machine, "date": datetime.date.today().isoformat()}


def record(path: Path) -> dict:
    """Read what is there, and make what is missing."""
    import torch

    from dlcourse.corpus import KindsCorpus

    torch.set_num_threads(1)
    data: dict = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not data:
        in_turns = step_seconds()
        data = {
            **made_by(),
            "command": "dlcourse bench architectures",
            "steps": STEPS,
            "short_steps": SHORT_STEPS,
            "long_steps": LONG_STEPS,
            "seeds": list(SEEDS),
            "batch": [BATCH_SIZE, BLOCK],
            "lr": LR,
            "text_bytes": KindsCorpus().train_bytes,
            "sizes": sizes(),
            "seconds": {name: statistics.median(values) for name, values in in_turns.items()},
            "runs": {},
        }
        write(path, data)
    for name, make in plan(data["seconds"]).items():
        if name not in data["runs"]:
            start = time.process_time()
            data["runs"][name] = make()
            taken = round(time.process_time() - start, 1)
            data["runs"][name] |= {"core_seconds": taken} | made_by()
            write(path, data)
            print(f"architectures: {name} {loss_at(data['runs'][name], 1e9):.3f}", flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, data: dict) -> None:
    """A line for each run. All or nothing: a run that is stopped leaves a file that can be read."""

    def lines(table: dict) -> str:
        return ",\n".join(
            f"{json.dumps(name)}: {json.dumps(value)}" for name, value in table.items()
        )

    head = {name: value for name, value in data.items() if name != "runs"}
    new = path.with_suffix(".new")
    text = "{\n" + lines(head) + ',\n"runs": {\n' + lines(data["runs"]) + "\n}\n}\n"
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; 0 where the MoE beats the dense model that computes as much, else 1."""
    parser = parser_of("architectures", __doc__)
    parser.add_argument("--file", type=Path, default=course_root() / "data" / "architectures.json")
    parser.add_argument(
        "--renew-text", action="store_true", help="first write what the lessons say now"
    )
    args = parser.parse_args(argv)
    if args.renew_text:
        if args.file.exists():
            parser.error(f"{args.file} was recorded with the text there is: delete it first")
        renew(course_root())
    data = record(args.file)
    found = contracts(data)
    for contract, models in found.items():
        for name, row in models.items():
            print(
                f"architectures: equal {contract}: {name} {row['loss']:.3f}, "
                f"{row['difference']:+.3f} to the first (seeds differ by {row['spread']:.3f}, "
                f"differences by {row['difference_spread']:.3f})"
            )
    for name, loss in long_runs(data).items():
        print(f"architectures: {name} after {data['long_steps']} steps {loss:.3f}, one seed")
    for group in ("balance", "capacity"):
        for name, row in short_runs(data, group).items():
            busiest, dropped = (f"{row[key]:.1%}" for key in ("busiest_at_end", "dropped"))
            print(
                f"architectures: {group} {name}: {row['loss']:.3f}, {row['difference']:+.3f} to "
                f"none (by {row['difference_spread']:.3f} from seed to seed), busiest expert "
                f"{busiest}, dropped {dropped}"
            )
    return 0 if found["active"]["moe"]["difference"] < 0 else 1


if __name__ == "__main__":
    raise SystemExit(main())
