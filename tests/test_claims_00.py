"""Claims A1-A4, of lesson 00's map and of lesson 15: each verdict is recomputed, in four ranks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module

import cloudpickle
import pytest

from dlcourse.bench.architectures import BASE, BLOCK
from dlcourse.course.claims import Claim, find_claim
from dlcourse.course.library_map import boxes_left_out, load_libraries
from dlcourse.figures.strategies import largest_difference
from dlcourse.formulas.architectures import (
    active_parameters,
    architecture_flops_per_token,
    compared_architectures,
    total_parameters,
)
from dlcourse.models.tiny import ARCHITECTURES
from dlcourse.peers.bakeoff import TOLERANCE as BAKEOFF
from dlcourse.peers.bakeoff import recorded_bakeoff
from dlcourse.ranks import Ranks
from dlcourse.training.architecture_record import contracts, long_runs
from dlcourse.training.architecture_record import load as load_runs

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

NUM_RANKS = 4
STRATEGIES = ("alone", "data", "zero1", "zero3", "tensor")
# Float32 sums in another order differ by about 1e-7 of the value at each addition.
TOLERANCE = 1e-5

Results = list[dict[tuple[str, str], dict]]


def train_all() -> dict[tuple[str, str], dict]:
    from dlcourse.models.tiny import TinyLM
    from dlcourse.peers.first_look import train

    return {(a, s): train(TinyLM(a), s) for a in ("dense", "moe") for s in STRATEGIES}


def train_gpts() -> dict[tuple[str, str], list[float]]:
    """Lesson 07's architectures under the strategies that the course has built: losses."""
    from dlcourse.corpus import Corpus
    from dlcourse.formulas.architectures import compared_architectures
    from dlcourse.formulas.sizes import ArchitectureConfig
    from dlcourse.models.architectures import ArchitectureGPT
    from dlcourse.parallel import data, tensor, zero
    from dlcourse.parallel.data import OverlappedDataParallel
    from dlcourse.parallel.zero import ZeRO1
    from dlcourse.parallel.zero2 import ZeRO2
    from dlcourse.parallel.zero3 import ZeRO3
    from dlcourse.training import loop

    base = dict(n_layer=2, n_head=NUM_RANKS, n_embd=16, block_size=32)
    experts = dict(num_experts=4, num_blocks=2, window=8)
    configs = compared_architectures(ArchitectureConfig(**base, **experts))
    del configs["dense_total"]  # dense once more, only wider
    strategies = {
        "alone": (lambda model: model, loop),
        "data": (OverlappedDataParallel, data),
        "zero1": (ZeRO1, zero),
        "zero2": (ZeRO2, zero),
        "zero3": (ZeRO3, zero),
        "tensor": (tensor.tensor_parallel, tensor),
    }
    corpus, steps = Corpus(limit=200_000), dict(steps=3, batch_size=8, block=32)
    return {
        (name, strategy): module.train(wrap(ArchitectureGPT(config)), corpus, **steps)
        for name, config in configs.items()
        for strategy, (wrap, module) in strategies.items()
    }


def sizes() -> dict[str, tuple[int, int]]:
    from dlcourse.models.tiny import TinyLM

    models = {name: TinyLM(name) for name in ARCHITECTURES}
    return {name: (m.num_parameters(), m.num_active_parameters()) for name, m in models.items()}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with Ranks(NUM_RANKS, default=False, timeout=120) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def results(pool: Ranks) -> Results:
    return pool.run(train_all)


def recorded(claim: Claim) -> dict[str, float]:
    return {figure.name: figure.value for figure in claim.figures}


def test_a1_every_architecture_trains_under_every_strategy(results, pool):
    claim = find_claim("A1")
    assert claim.verdict == "holds"
    gap = largest_difference(results[0])
    assert gap < TOLERANCE
    assert recorded(claim)["pairs"] == len(results[0]) == len(ARCHITECTURES) * len(STRATEGIES)
    assert recorded(claim)["gap"] < TOLERANCE
    for of_rank in results[1:]:
        assert {k: r["losses"] for k, r in of_rank.items()} == {
            k: r["losses"] for k, r in results[0].items()
        }
    # The architectures are different ones: equal losses would prove nothing.
    assert results[0]["dense", "alone"]["losses"] != results[0]["moe", "alone"]["losses"]
    # The same of the GPTs of lesson 07, under the strategies that the course has built
    losses = pool.run(train_gpts)[0]
    alone = {name: of_steps for (name, strategy), of_steps in losses.items() if strategy == "alone"}
    assert len({tuple(of_steps) for of_steps in alone.values()}) == len(alone) == 5
    gaps = [
        abs(a - b) for (n, _), run in losses.items() for a, b in zip(run, alone[n], strict=True)
    ]
    assert recorded(claim)["gpt_pairs"] == len(losses)
    assert max(gaps) < TOLERANCE and recorded(claim)["gpt_gap"] < TOLERANCE


def test_a2_an_moe_is_sparse_so_compute_or_parameters_must_be_fixed(pool):
    claim = find_claim("A2")
    assert claim.verdict == "holds_when"
    (dense, dense_active), (moe, moe_active) = pool.run(sizes, ranks=[0])[0].values()
    assert dense == dense_active, "a token uses all of a dense model"
    assert moe_active < moe, "and only a part of an MoE: it is sparse"
    assert moe / dense == pytest.approx(recorded(claim)["parameters"], rel=0.01)
    assert moe_active / dense_active == pytest.approx(recorded(claim)["active"], rel=0.01)
    # Which of the four is best depends on what is fixed: the recorded run of lesson 07
    run = load_runs()
    found = contracts(run)
    of_moe = {name: models["moe"]["difference"] for name, models in found.items()}
    for name, difference in of_moe.items():
        assert difference == pytest.approx(recorded(claim)[f"equal_{name}"], abs=5e-4)
        assert abs(difference) > found[name]["moe"]["difference_spread"], "the same in all seeds"
    assert of_moe["active"] < 0 < of_moe["seconds"]
    longer = long_runs(run)
    gap = longer["moe"] - longer["dense_total"]
    assert gap == pytest.approx(recorded(claim)["equal_total_longer"], abs=5e-4)
    assert of_moe["total"] < gap < 0, "the large dense model comes nearer"
    for name, config in compared_architectures(BASE).items():
        assert run["sizes"][name]["parameters"] == total_parameters(config)
        assert run["sizes"][name]["active"] == active_parameters(config)
        flops = architecture_flops_per_token(config, block=BLOCK)
        assert run["sizes"][name]["flops_per_token"] == flops
        assert {f"contract/{name}/{seed}" for seed in range(3)} <= run["runs"].keys()


def test_a3_libraries_can_be_compared_strategy_by_strategy(results):
    claim = find_claim("A3")
    assert claim.verdict == "holds_when"
    for architecture in ARCHITECTURES:
        ddp, fsdp = (results[0][architecture, s]["losses"] for s in ("data", "zero3"))
        assert ddp == pytest.approx(fsdp, abs=TOLERANCE)
    assert recorded(claim)["same_loss"] < TOLERANCE
    cells = {library["name"]: set(library["cells"]) for library in load_libraries()["libraries"]}
    assert cells["Horovod"] == {"data"}
    for toolbox in ("Megatron-Core", "DeepSpeed"):
        assert cells[toolbox] > {"data", "tensor", "pipeline"}, "more than what DDP is"
    # All of them beside each other, in the recorded bake-off of lesson 15
    ran = bakeoff_rows()
    of_library: dict[str, set[str]] = {}
    for row in ran.values():
        of_library.setdefault(row["library"], set()).add(row["strategy"])
    assert of_library["Horovod"] == {"data"}
    assert of_library["DeepSpeed"] >= {"data", "zero", "pipeline"}
    assert of_library["Megatron-Core"] >= {"tensor"} and of_library["torch"] >= {"data", "zero"}
    assert recorded(claim)["rows"] == len(ran)
    largest = max(row["gap"] for row in ran.values())
    assert recorded(claim)["gap"] == pytest.approx(largest, rel=0.01) and largest < BAKEOFF
    sent = [row["sent"] for row in ran.values() if row["strategy"] == "data"]
    assert len(sent) == 5, "DDP, Accelerate, Horovod, DeepSpeed 0 and ours do one thing"
    assert recorded(claim)["data_sent"] == pytest.approx(max(sent) / min(sent), abs=1e-3)
    # Horovod's ranks ask each other every millisecond what is ready, also while they wait
    assert max(sent) < 1.1 * min(sent)
    ddp, fsdp = ran["DDP"], ran["FSDP2"]
    assert recorded(claim)["fsdp_sent"] == pytest.approx(fsdp["sent"] / ddp["sent"], abs=1e-3)
    peaks = [sum(row["memory"].values()) for row in (fsdp, ddp)]
    assert recorded(claim)["fsdp_memory"] == pytest.approx(peaks[0] / peaks[1], abs=1e-3)
    assert fsdp["sent"] > 1.5 * ddp["sent"] and peaks[0] < 0.8 * peaks[1], "FSDP does another thing"


def bakeoff_rows() -> dict[str, dict]:
    """Those of the recorded bake-off that trained over several ranks, by name."""
    rows = {row["name"]: row for row in recorded_bakeoff()["rows"]}
    assert {row["state"] for row in rows.values()} == {"ran"}
    return {name: row for name, row in rows.items() if row["strategy"] != "alone"}


def test_a4_zero_tensor_and_pipeline_parallelism_are_in_torch(results):
    claim = find_claim("A4")
    assert claim.verdict == "does_not_hold"

    def fullest(strategy: str) -> int:
        return max(of_rank["dense", strategy]["optimizer_state"] for of_rank in results)

    zero1, zero3 = (100 * fullest(s) / fullest("data") for s in ("zero1", "zero3"))
    assert zero1 == pytest.approx(recorded(claim)["zero1"], rel=0.02)
    assert zero3 == pytest.approx(recorded(claim)["zero3"], rel=0.02)
    assert zero3 < 26 and zero1 < 40
    whole = results[0]["dense", "data"]["parameters"]
    assert results[0]["dense", "zero3"]["parameters"] == whole / NUM_RANKS
    assert results[0]["dense", "zero1"]["parameters"] == whole, "stage 1 keeps the parameters"
    assert results[0]["dense", "tensor"]["parameters"] < whole
    pipelining = import_module("torch.distributed.pipelining")
    assert all(hasattr(pipelining, name) for name in ("PipelineStage", "ScheduleGPipe"))
    libraries = load_libraries()
    left_out = boxes_left_out(libraries)
    assert recorded(claim)["left_out"] == len(left_out)
    # What the claim denies to torch has run, with the losses of one process
    ran = {(row["library"], row["strategy"]) for row in bakeoff_rows().values()}
    assert {("torch", strategy) for strategy in ("zero", "tensor", "pipeline")} <= ran
    assert recorded(claim)["ran"] == len(ran & {*left_out})


def test_the_library_map_has_a_source_for_every_library():
    data = load_libraries()
    for library in data["libraries"]:
        assert library["sources"] and all(s.startswith("https://") for s in library["sources"])
        assert set(library["cells"]) <= set(data["strategies"])
        assert set(library["claimed"]) <= set(data["strategies"])


def test_wrong_names_and_sizes_are_refused(pool):
    def refused(architecture, strategy, batch_size):
        from dlcourse.models.tiny import TinyLM
        from dlcourse.peers.first_look import train

        try:
            train(TinyLM(architecture), strategy, batch_size=batch_size)
        except ValueError as error:
            return str(error)

    said = pool.run(refused, "dense", "ddp", 24)[0]
    assert "strategy='ddp' is unknown: give one of alone, data" in said
    assert "architecture='mamba'" in pool.run(refused, "mamba", "data", 24)[0]
    assert "batch_size=10 cannot be split over 4" in pool.run(refused, "dense", "data", 10)[0]
