"""The formulas: without torch, each in one place, and each compared with what is measured.

Some comparisons stand with the lessons that make them; ``MEASURED_IN`` says where, and a test here
that it is so.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from dlcourse.formulas.batch import derived_batch
from dlcourse.formulas.bubbles import idle_over_ideal, idle_over_total
from dlcourse.formulas.flops import attention_flops, flops_per_token
from dlcourse.formulas.memory import predict_peak
from dlcourse.formulas.mesh import mesh_bytes, stage_parameters
from dlcourse.formulas.recipe import Recipe
from dlcourse.formulas.traffic import algorithm_bytes, wire_bytes, zero_bytes
from dlcourse.measure.recorder import Recorder
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.pipeline_schedules import gpipe, interleaved, one_f_one_b
from dlcourse.parallel.pipeline_simulation import simulate

ROOT = Path(__file__).resolve().parents[1]
FORMULAS = sorted((ROOT / "dlcourse" / "formulas").glob("*.py"))

# Where each formula is compared with the ledger, the wire, the simulation or a published table
MEASURED_IN = {
    "overlap": {
        "best_bucket": "test_overlap.py::test_the_best_bucket_is_neither_the_smallest_nor_all",
        "buckets": "test_overlap.py::test_a_bucket_waits_for_the_one_before_it",
        "hidden_share": "test_overlap.py::test_one_bucket_hides_nothing",
        "overlapped_seconds": "test_overlap.py::test_one_bucket_hides_nothing",
    },
    "benchmark_plan": {"sweep_seconds": "test_backends.py::test_a_sweep_by_hand"},
    "activations": {
        "layer_terms": "test_checkpointing.py::test_layer_bytes_are_what_autograd_saves",
        "layer_bytes": "test_checkpointing.py::test_layer_bytes_are_what_autograd_saves",
        "quoted_terms": "test_checkpointing.py::test_the_quoted_formula",
        "stream_bytes": "test_sharding_offload.py::test_a_hundred_layers_need_what_was_predicted",
        "loss_bytes": "test_checkpointing.py::test_peak_flops_and_gradients_of_every_placement",
        "mlp_backward_bytes": (
            "test_checkpointing.py::test_peak_flops_and_gradients_of_every_placement"
        ),
        "weight_copy_bytes": "test_memory_anatomy.py::test_autocast_with_checkpoints",
        "activation_moments": "test_memory_anatomy.py::test_autocast_with_checkpoints",
        "activation_peak": "test_mixed_precision.py::test_the_formulas_are_what_the_ledger_counts",
        "selective_peak": "test_checkpointing.py::test_selective_repeats_no_product",
    },
    "architectures": {
        **dict.fromkeys(
            (
                *("mixer_parameters", "feed_forward_parameters"),
                *("total_parameters", "active_parameters"),
            ),
            "test_architectures.py::test_parameters_are_those_of_the_modules",
        ),
        "mixer_flops_per_token": ("test_architectures.py::test_flops_are_what_the_recorder_counts"),
        "architecture_flops_per_token": (
            "test_architectures.py::test_flops_are_what_the_recorder_counts"
        ),
        "training_state_bytes": "test_architectures.py::test_states_are_what_training_keeps",
        "compared_architectures": (
            "test_architectures.py::test_what_is_compared_computes_about_the_same_for_a_token"
        ),
    },
    "batch": {
        "derived_batch": "test_explain.py::test_the_batch_is_what_deepspeed_derives",
        "fitting_worlds": "test_explain.py::test_the_batch_is_what_deepspeed_derives",
    },
    "learning_rate": dict.fromkeys(
        ("warmup_lr", "warmup_cosine_lr", "range_test_lr"),
        "test_explain.py::test_schedules_are_those_of_deepspeed",
    ),
    "bubbles": {
        "idle_over_total": "test_formulas.py::test_bubbles_are_those_of_the_simulation",
        "idle_over_ideal": "test_formulas.py::test_bubbles_are_those_of_the_simulation",
    },
    "checkpoint_segments": {
        "every": "test_checkpointing.py::test_peak_flops_and_gradients_of_every_placement",
        "best_length": "test_checkpointing.py::test_sqrt_n_is_best_where_a_layer_stores_one_value",
    },
    "collective_time": {
        "fit_line": "test_collective_time.py::test_a_line_finds_alpha_and_beta_again",
        "fastest": "test_backends.py::test_the_fastest_of_all_turns_is_kept_by_algorithm_and_size",
        "bus_bandwidth": "test_collective_time.py::test_bus_bandwidth_is_that_of_nccl_tests",
        "fit": "test_collective_time.py::test_fit_finds_what_made_the_measurements",
    },
    "devices": {
        "layer_ranges": "test_sharding_offload.py::test_layers_are_cut_as_the_sizes_say",
        **dict.fromkeys(
            ("device_needs", "at_peak"),
            "test_sharding_offload.py::test_a_hundred_layers_need_what_was_predicted",
        ),
    },
    "offload": {
        "moved_bytes": "test_offload_steps.py::test_offload_moves_what_was_predicted",
        "offloaded_step": "test_offload_steps.py::test_a_step_takes_what_was_predicted",
    },
    "flops": {
        "attention_flops": "test_formulas.py::test_flops_of_a_token_and_of_a_step",
        "attention_backward_flops": (
            "test_checkpointing.py::test_peak_flops_and_gradients_of_every_placement"
        ),
        "step_flops": "test_checkpointing.py::test_peak_flops_and_gradients_of_every_placement",
        "flops_per_token": "test_formulas.py::test_flops_of_a_token_and_of_a_step",
    },
    "mesh": dict.fromkeys(
        ("stage_parameters", "mesh_bytes"),
        "test_mesh.py::test_a_rank_holds_and_sends_what_the_formulas_say",
    ),
    "goodput": {
        **dict.fromkeys(
            ("checkpointed_goodput", "time_shares", "best_interval", "young_interval"),
            "test_goodput.py::test_goodput_is_that_of_the_simulation",
        ),
        "daly_interval": "test_goodput.py::test_the_best_interval_by_simulation_is_daly_s",
        "first_order_goodput": "test_goodput.py::test_where_young_is_wrong",
        "job_mtbf": "test_goodput.py::test_failures_of_nodes_add_up",
        **dict.fromkeys(
            ("spares_availability", "job_goodput"),
            "test_goodput.py::test_spare_nodes_are_those_of_the_simulation",
        ),
        **dict.fromkeys(
            ("slowest_of", "step_stretch"),
            "test_goodput.py::test_a_step_takes_as_long_as_its_slowest_rank",
        ),
        "slow_node_odds": "test_goodput.py::test_one_slow_machine_is_enough",
    },
    "memory": {
        "predict_peak": "test_memory_anatomy.py::test_formulas_against_the_ledger",
        "step_cost": "test_memory_anatomy.py::test_formulas_against_the_ledger",
    },
    "number_formats": {
        "largest_number": "test_mixed_precision.py::test_formats_are_those_of_torch",
        "smallest_number": "test_mixed_precision.py::test_formats_are_those_of_torch",
        "spacing": "test_mixed_precision.py::test_formats_are_those_of_torch",
    },
    "parameters": {
        "layer_parameters": "test_gpt.py::test_number_of_parameters",
        "parameter_units": "test_gpt.py::test_number_of_parameters",
        "num_parameters": "test_gpt.py::test_number_of_parameters",
        "matrix_parameters": "test_formulas.py::test_flops_of_a_token_and_of_a_step",
    },
    "states": {
        "value_bytes": "test_memory_anatomy.py::test_formulas_against_the_ledger",
        "state_bytes": "test_zero.py::test_the_ledger_shows_the_papers_bytes",
        "exact_state_bytes": "test_memory_anatomy.py::test_formulas_against_the_ledger",
        "offloaded_state_bytes": "test_sharding_offload.py::test_the_host_keeps_what_was_predicted",
    },
    "traffic": {
        "wire_bytes": "test_formulas.py::test_a_collective_sends_what_its_best_algorithm_does",
        "share_of_others": "test_formulas.py::test_a_collective_sends_what_its_best_algorithm_does",
        **dict.fromkeys(
            ("expert_trip_bytes", "count_bytes"),
            "test_scale.py::test_experts_over_thousands_of_ranks_send_what_the_formula_says",
        ),
        "distinct_ranks": "test_expert_parallel.py::test_in_how_many_ranks_a_token_is",
        "algorithm": "test_collectives.py::test_bytes_on_the_wire_are_those_of_theory",
        "algorithm_bytes": "test_collectives.py::test_bytes_on_the_wire_are_those_of_theory",
        "busiest_rank_bytes": ("test_collectives.py::test_bytes_on_the_wire_are_those_of_theory"),
        "zero_bytes": "test_zero.py::test_bytes_on_the_wire",
        "pair_crossings": (
            "test_tensor_parallel.py::test_two_cut_matrices_send_what_the_formula_says"
        ),
        "block_bytes": "test_tensor_parallel.py::test_blocks_send_what_the_formula_says",
    },
}

# A lesson that teaches a formula writes it out: how many times it does, in its code
TAUGHT = {
    "03_data_parallel": 1,
}


# --- One folder, without torch ------------------------------------------------------------------


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(path: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in tree(path).body if isinstance(node, ast.FunctionDef)}


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def test_formulas_need_no_torch():
    modules = ", ".join(f"dlcourse.formulas.{path.stem}" for path in FORMULAS)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", FORMULAS, ids=lambda path: path.stem)
def test_formulas_use_only_words_and_each_other(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            package = node.module.split(".")[:2]
            assert package[0] in sys.stdlib_module_names or package in (
                ["dlcourse", "formulas"],
                ["dlcourse", "words"],
            ), ast.unparse(node)
        elif isinstance(node, ast.Import):
            assert all(alias.name in sys.stdlib_module_names for alias in node.names)


# --- Each in one place --------------------------------------------------------------------------


def is_one_less(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.Sub)
        and isinstance(node.right, ast.Constant)
        and node.right.value == 1
    )


def factors(node: ast.AST) -> list[ast.AST]:
    """``2 * a * b`` → 2, a, b; a square is its base twice."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return factors(node.left) + factors(node.right)
    square = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    if square and isinstance(node.right, ast.Constant) and node.right.value == 2:
        return [node.left, node.left]
    return [node]


def closed_forms(code: ast.AST) -> list[str]:
    """Expressions such as (p - 1) / p and (p - 1) / (m + p - 1), and 12 C C."""
    found = []
    for node in ast.walk(code):
        if not isinstance(node, ast.BinOp):
            continue
        if isinstance(node.op, ast.Div):
            bottom = {ast.dump(part) for part in ast.walk(node.right)}
            tops = [part for part in factors(node.left) if is_one_less(part)]
            if any(ast.dump(top.left) in bottom for top in tops):
                found.append(ast.unparse(node))
        if isinstance(node.op, ast.Mult):
            parts = factors(node)
            sides = [ast.dump(part) for part in parts if not isinstance(part, ast.Constant)]
            numbers = [part.value for part in parts if isinstance(part, ast.Constant)]
            if len(set(sides)) < len(sides) and any(n in (8, 10, 12, 16, 24) for n in numbers):
                found.append(ast.unparse(node))
    return found


def test_the_search_finds_closed_forms():
    for code in ("2 * (n - 1) / n * S", "(w - 1) / (m + w - 1)", "L * 12 * C * C", "24 * C**2"):
        assert closed_forms(ast.parse(code)), code
    for code in ("i * (count - 1) / (most - 1)", "4 * C * V", "(a - 1) * b"):
        assert not closed_forms(ast.parse(code)), code


def test_no_other_module_has_a_closed_form():
    exercises = ROOT / "dlcourse" / "course" / "exercises"  # answers are checked on their own
    defined = {name for path in FORMULAS for name in functions(path) if name[0] != "_"}
    for path in sorted((ROOT / "dlcourse").rglob("*.py")):
        if path in FORMULAS or exercises in path.parents:
            continue
        assert not closed_forms(tree(path)), path
        assert not defined & set(functions(path)), path


def test_lessons_write_out_what_they_teach_and_nothing_else():
    found = {}
    for path in sorted((ROOT / "notebooks" / "source").glob("*/lesson.py")):
        found[path.parent.name] = len(closed_forms(tree(path)))
    assert {name: count for name, count in found.items() if count} == TAUGHT


# --- Each compared with what is measured --------------------------------------------------------


def test_each_formula_says_where_it_is_measured():
    for path in FORMULAS:
        public = {name for name in functions(path) if not name.startswith(("_", "check_"))}
        assert public == set(MEASURED_IN.get(path.stem, ())), path.stem


@cache
def calls() -> dict[str, set[str]]:
    return {n: names_in(node) for path in FORMULAS for n, node in functions(path).items()}


def reached(names: set[str], graph: dict[str, set[str]]) -> set[str]:
    """These names, and all that they use."""
    while new := {name for known in names & set(graph) for name in graph[known]} - names:
        names = names | new
    return names


@pytest.mark.parametrize(
    ("formula", "where"),
    [(name, where) for module in MEASURED_IN.values() for name, where in module.items()],
)
def test_the_test_that_measures_a_formula_uses_it(formula, where):
    file, test = where.split("::")
    here = {name: names_in(node) for name, node in functions(ROOT / "tests" / file).items()}
    assert test in here
    assert formula in reached(reached({test}, here), calls())


# --- What is not measured elsewhere -------------------------------------------------------------


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("times", [1, 4])
def test_bubbles_are_those_of_the_simulation(num_ranks, times):
    m = times * num_ranks
    for schedule in (gpipe(num_ranks, m), one_f_one_b(num_ranks, m), interleaved(num_ranks, m, 3)):
        gantt, chunks = simulate(schedule), {"num_chunks": schedule.num_chunks}
        assert gantt.idle_over_total == pytest.approx(idle_over_total(num_ranks, m, **chunks))
        assert gantt.idle_over_ideal == pytest.approx(idle_over_ideal(num_ranks, m, **chunks))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_collective_sends_what_its_best_algorithm_does(world_size):
    """What the algorithms send is compared with TCP's counters in test_collectives.py."""
    best = {
        "all_reduce": "ring_all_reduce",
        "reduce_scatter": "ring_reduce_scatter",
        "all_gather": "ring_all_gather",
        "all_to_all": "direct_all_to_all",
        "broadcast": "tree_broadcast",
        "reduce": "tree_reduce",
    }
    for op, name in best.items():
        want = pytest.approx(algorithm_bytes(name, 100, world_size))
        assert wire_bytes(op, 100, world_size) == want
    # A gather's root receives p - 1 parts, each a p-th of the buffer, from the p - 1 others
    part = 100 / world_size
    for op in ("gather", "scatter"):
        together = world_size * wire_bytes(op, 100, world_size)
        assert together == pytest.approx((world_size - 1) * part)
    assert wire_bytes("send", 100, 2) == 100
    assert wire_bytes("recv", 100, 2) == wire_bytes("barrier", 100, 2) == 0


def test_flops_of_a_token_and_of_a_step():
    """Fused attention makes its scores again in backward: half of its forward, which MFU omits."""
    config, tokens = GPTConfig(n_layer=2, n_head=2, n_embd=32), torch.zeros(3, 16, dtype=torch.long)
    with Recorder(0, 1) as recorder:
        GPT(config)(tokens, tokens).backward()
    shape_BHTD = (3, 2, 16, 16)
    again = config.n_layer * attention_flops(shape_BHTD, shape_BHTD, shape_BHTD) // 2
    assert recorder.record["flops"] - again == tokens.numel() * flops_per_token(config, block=16)


BATCH = {"micro_batch": 1, "micro_batches": 1, "block": 128}
MESH = {"data": 1, "pipeline": 2, "tensor": 2, **BATCH}
WRONG = {  # what gave numbers, some of them below 0, or the error of a division
    "op='allreduce'": lambda: wire_bytes("allreduce", 100, 4),  # half of what an all-reduce sends
    "op='all-reduce'": lambda: wire_bytes("all-reduce", 100, 4),
    "world_size=0": lambda: wire_bytes("all_reduce", 100, 0),
    "world_size=-2": lambda: wire_bytes("all_reduce", 100, -2),
    "accumulate=0": lambda: zero_bytes(100, world_size=4, stage=3, accumulate=0),
    "accumulate=-1": lambda: zero_bytes(100, world_size=4, stage=3, accumulate=-1),
    "num_micro_batches=-1": lambda: idle_over_total(4, -1),
    "num_chunks=0": lambda: idle_over_total(4, 4, num_chunks=0),
    "tensor=-1": lambda: stage_parameters(GPTConfig(), pipeline=2, tensor=-1),
    "tensor=0": lambda: stage_parameters(GPTConfig(), pipeline=2, tensor=0),
    "stage=0.5": lambda: stage_parameters(GPTConfig(), pipeline=2, tensor=1, stage=0.5),
    "data=0": lambda: mesh_bytes(GPTConfig(), **{**MESH, "data": 0}),
    "micro_batches=-1": lambda: mesh_bytes(GPTConfig(), **{**MESH, "micro_batches": -1}),
    "block=0": lambda: mesh_bytes(GPTConfig(), **{**MESH, "block": 0}),
    "block=129": lambda: predict_peak(GPTConfig(), Recipe(), sequences=1, block=129),
    "block=True": lambda: predict_peak(GPTConfig(), Recipe(), sequences=1, block=True),
    "sequences=2.0": lambda: predict_peak(GPTConfig(), Recipe(), sequences=2.0, block=8),
    "world_size=-1": lambda: predict_peak(
        GPTConfig(), Recipe(), sequences=1, block=8, world_size=-1
    ),
    "checkpoint='no'": lambda: Recipe(checkpoint="no"),
    "stage=True": lambda: Recipe(stage=True),
    "batch=32.0": lambda: derived_batch(32.0, 4, None, world_size=2),
    "world_size=0 ": lambda: derived_batch(32, None, None, world_size=0),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_no_formula_can_tell_is_refused(said):
    with pytest.raises(ValueError, match=re.escape(said.strip())):
        WRONG[said]()


def test_techniques_of_a_generator():
    assert Recipe.of(name for name in ("mixed", "zero3")) == Recipe.of({"mixed", "zero3"})
    with pytest.raises(ValueError, match="techniques holds zero4"):
        Recipe.of(name for name in ("mixed", "zero4"))
