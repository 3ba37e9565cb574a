"""The planner against published tables and runs, microbenchmarks, and the course's formulas."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
import tomllib
import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from dlcourse import cli
from dlcourse.explain import explain
from dlcourse.formulas.activations import layer_bytes
from dlcourse.formulas.bubbles import idle_over_ideal
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.sizes import MODELS
from dlcourse.formulas.states import CATEGORIES, state_bytes
from dlcourse.plan import published
from dlcourse.plan.calibrate import read_profile
from dlcourse.plan.cluster import cluster_of, gpu_types, how_found
from dlcourse.plan.cluster_size import with_gpus
from dlcourse.plan.communication import all_reduce_seconds, gather_seconds
from dlcourse.plan.hf_config import published_model, published_models, read_config
from dlcourse.plan.job import STATE_BYTES, SUM_APART_BYTES, SUM_BYTES, Job
from dlcourse.plan.kernels import linear_seconds, matrix_seconds
from dlcourse.plan.launch import files, missing
from dlcourse.plan.layout_bytes import layout_bytes
from dlcourse.plan.layout_memory import layer_activations, memory, rank_memory
from dlcourse.plan.layout_space import all_layouts, divisors, nearest_batch
from dlcourse.plan.layout_time import hardware_flops, model_flops, step_seconds
from dlcourse.plan.layouts import SCHEDULES, Layout, Layouts, stage_layers
from dlcourse.plan.model_shape import active_numbers, gpt_shape, total_numbers
from dlcourse.plan.planner import DoesNotFit, complexity, judge, plan
from dlcourse.plan.regret import comparable, regret
from dlcourse.plan.what_if import what_if
from dlcourse.words import strings
from dlcourse.words.refusal import Refusal

DATA = Path(__file__).resolve().parents[1] / "data"
ROWS = published.read(DATA / "published_runs.json")
GIB = 1024**3


def job_of(model: str = "llama-3-8b", gpus: int = 64, gpu: str = "h100", **other) -> Job:
    batch = dict(batch_tokens=1024 * 4096, sequence=4096)
    own = {name: other.pop(name) for name in ("memory", "node") if name in other}
    cluster = cluster_of(gpu, gpus=gpus, **own)
    return Job(shape=published_model(model), cluster=cluster, **batch | other)


def one(job: Job, **layout) -> dict[str, float]:
    """Memory of one layout by category."""
    return {k: float(v[0]) for k, v in memory(job, Layouts.of([Layout(**layout)])).items()}


def seconds_of(job: Job, **layout) -> dict[str, float]:
    return {k: float(v[0]) for k, v in step_seconds(job, Layouts.of([Layout(**layout)])).items()}


# -- models ---------------------------------------------------------------------------------------

# As their model cards or the sums over their checkpoint's tensors say
TOTALS = {
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-2-7b": 6_738_415_616,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen3-30b-a3b": 30_532_122_624,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "gpt-neox-20b": 20_554_567_680,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_419_200,
}


@pytest.mark.parametrize("name", TOTALS)
def test_parameters_are_those_of_the_published_model(name):
    """Grouped queries, latent attention, gated MLPs, experts and shared ones, tied or not."""
    assert total_numbers(published_model(name)) == TOTALS[name]
    assert published_models()[name]["source"]


def test_active_parameters_of_mixtures():
    for name, billions in (
        ("mixtral-8x7b", 12.9),
        ("qwen3-235b-a22b", 22.2),
        ("deepseek-v3", 37.6),
    ):
        assert active_numbers(published_model(name)) / 1e9 == pytest.approx(billions, abs=0.06)


@pytest.mark.parametrize("name", MODELS)
def test_our_own_gpt_has_the_parameters_of_its_formula(name):
    assert total_numbers(gpt_shape(MODELS[name])) == num_parameters(MODELS[name])


def test_a_config_file_is_read(tmp_path):
    file = tmp_path / "mine" / "config.json"
    file.parent.mkdir()
    file.write_text(json.dumps(dict(published_models()["mixtral-8x7b"], num_local_experts=4)))
    shape = read_config(file)
    assert (shape.name, shape.experts, shape.moe_layers) == ("mine", 4, 32)
    assert total_numbers(shape) < total_numbers(published_model("mixtral-8x7b"))


def config_text(model_type: str) -> str:
    """A config with Llama's keys alone."""
    sizes = dict(hidden_size=64, vocab_size=9, num_hidden_layers=2, num_attention_heads=4)
    return json.dumps(dict(model_type=model_type, intermediate_size=128, **sizes))


def sized(**sizes) -> str:
    return json.dumps(json.loads(config_text("llama")) | sizes)


def test_what_has_the_layers_of_a_known_model_is_read(tmp_path):
    """Also without a model_type, and a mixture's dense sister."""
    texts = [config_text(kind) for kind in ("llama", "", "smollm3")]
    texts.append(json.dumps(json.loads(config_text("mixtral")) | {"num_local_experts": None}))
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.json").write_text(text)
    shapes = [read_config(tmp_path / f"{number}.json") for number in range(4)]
    assert [shape.tied for shape in shapes] == [False, False, True, False]
    assert all(shape.layers == 2 and not shape.experts for shape in shapes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"hidden_size": 64,\n "vocab_size": }', "line 2, column 16"),
        ("[1, 2]", "holds list"),
        (
            '{"model_type": "mamba", "hidden_size": 64, "vocab_size": 100}',
            "num_hidden_layers, num_attention_heads, intermediate_size",
        ),
        ('{"model_type": "mamba", "hidden_size": 64, "vocab_size": 100}', "'mamba' (known are"),
        (
            '{"model_type": "llama", "hidden_size": 64, "vocab_size": 100, "num_hidden_layers": 2,'
            '"num_attention_heads": 3, "intermediate_size": 128}',
            "3 heads do not divide hidden size 64",
        ),
        (
            '{"model_type": "llama", "hidden_size": 64, "vocab_size": -1, "num_hidden_layers": 2,'
            '"num_attention_heads": 4, "intermediate_size": 128}',
            "vocab_size=-1",
        ),
        (
            '{"model_type": "deepseek_v3", "hidden_size": 64, "vocab_size": 9, "num_hidden_layers":'
            '2, "num_attention_heads": 4, "intermediate_size": 128, "n_routed_experts": 8}',
            "missing kv_lora_rank, qk_nope_head_dim, qk_rope_head_dim, v_head_dim",
        ),
        (
            '{"model_type": "llama", "hidden_size": 64, "vocab_size": 9, "num_hidden_layers": 2,'
            '"num_attention_heads": 4, "intermediate_size": 128, "num_key_value_heads": "2"}',
            "num_key_value_heads='2'",
        ),
        (
            '{"model_type": "mixtral", "hidden_size": 64, "vocab_size": 9, "num_hidden_layers": 2,'
            '"num_attention_heads": 4, "intermediate_size": 128, "num_local_experts": 4}',
            "missing num_experts_per_tok",
        ),
        (config_text("bert"), "model_type 'bert' (known are llama"),
        (config_text("gemma2"), "give that model_type"),
        (
            f'{{"model_type": "llama4", "text_config": {config_text("llama4_text")}}}',
            "'llama4_text'",
        ),
        (config_text("mixtral"), "missing one of num_local_experts, num_experts"),
        (config_text("deepseek_v3"), "missing one of num_local_experts"),
    ],
)
def test_a_bad_config_is_refused_in_words(tmp_path, text, said):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError) as refused:
        read_config(file)
    assert said in str(refused.value)


# -- memory ---------------------------------------------------------------------------------------


def test_zero_states_are_the_papers_table():
    """Rounded as the paper prints them."""
    for numbers, rows in ROWS["zero"]["rows"].items():
        for ranks, *printed in rows:
            for stage, gigabytes in zip((1, 2, 3), printed, strict=True):
                parts = state_bytes(
                    float(numbers), precision="master", world_size=ranks, stage=stage
                )
                # Its last digit, and for a fraction of a trillion at least 0.1%
                step = 0.5 * 10 ** -len(str(gigabytes).partition(".")[2])
                assert abs(sum(parts.values()) / 1e9 - gigabytes) <= max(step, 1e-3 * gigabytes)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("states", ["bf16", "float32"])
def test_states_of_data_parallelism_are_the_courses_formula(stage, states):
    job = job_of(states=states)
    held = one(job, data=64, stage=stage)
    precision = {"bf16": "master", "float32": "float32"}[states]
    numbers = total_numbers(job.shape)
    wanted = state_bytes(numbers, precision=precision, world_size=64, stage=stage)
    for name in CATEGORIES:
        assert held[name] == pytest.approx(wanted[name], rel=1e-12)


def test_the_ranks_of_a_mesh_hold_the_model_once_for_each_replica():
    """Summed over tensor and expert ranks of all stages: sharded and experts once."""
    shape, job = published_model("qwen3-30b-a3b"), job_of("qwen3-30b-a3b", states="bf16")
    held = one(job, data=8, tensor=4, pipeline=2, expert=32)
    dense = one(job, data=8, tensor=4, pipeline=2, expert=1)
    experts = shape.moe_layers * shape.experts * 3 * shape.hidden * shape.expert_ffn
    saved = 2 * experts / 2 * (1 - 1 / 32)
    assert dense["parameters"] - held["parameters"] == pytest.approx(saved, rel=1e-9)
    # The experts' optimizer is divided over the 8 x 4 / 32 = 1 rank that has the same ones
    one_stage = one(job, data=8, tensor=4, pipeline=2, expert=32, stage=1)
    both = 12 * experts / 2 / 32
    assert one_stage["optimizer_state"] > both
    assert one_stage["optimizer_state"] < both + 12 * total_numbers(shape) / 2 / 4 / 8


def korthikanti_job(layers: int, hidden: int, heads: int, sequence: int, **other) -> Job:
    shape = published.gpt("gpt", layers, hidden, heads, 51200)
    cluster = cluster_of("a100", gpus=8)
    options = dict(batch_tokens=8 * sequence, sequence=sequence, attention="unfused")
    return Job(shape=shape, cluster=cluster, **options | other)


@pytest.mark.parametrize("name", ["8B", "70B", "405B"])
def test_activations_are_the_published_table(name):
    layers, hidden, heads, *printed = ROWS["activations"]["rows"][name]
    for sequence, gibibytes in zip((1024, 4096, 16384), printed, strict=True):
        job = korthikanti_job(layers, hidden, heads, sequence)
        held, _ = layer_activations(job, Layouts.of([Layout()]))
        assert layers * held[0] / GIB == pytest.approx(gibibytes, rel=0.03)


@pytest.mark.parametrize("t", [1, 8])
@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_activations_are_the_published_formula(t, sequence_parallel, recompute):
    s, b, h, a = 2048, 4, 12288, 96
    job = korthikanti_job(96, h, a, s, sequence_parallel=sequence_parallel)
    layouts = Layouts.of([Layout(tensor=t, micro_batch=b, recompute=recompute)])
    held = layer_activations(job, layouts)[0][0]
    stream = t if sequence_parallel else 1
    scores = 0 if recompute == "selective" else 5 * a * s / (h * t)
    wanted = s * b * h * (10 / stream + 24 / t + scores)
    if recompute == "full":
        wanted = 2 * s * b * h / stream
    assert held == pytest.approx(wanted, rel=1e-9)


def test_activations_of_our_gpt_are_those_that_the_ledger_counted():
    """The formula that ``formulas/activations.py`` compares with the ledger; all in 16 bits."""
    config = MODELS["1.3b"]
    job = Job(
        shape=gpt_shape(config),
        cluster=cluster_of("h100", gpus=8),
        batch_tokens=64 * 2048,
        sequence=2048,
    )
    held, _ = layer_activations(job, Layouts.of([Layout(micro_batch=2)]))
    wanted = layer_bytes(config, micro_batch=2, block=2048, precision="bfloat16")
    assert held[0] == pytest.approx(wanted, rel=0.002)  # but for the numbers of two norms' rows


def test_a_pipeline_holds_as_many_micro_batches_as_its_schedule():
    """GPipe all, 1F1B as many as stages, interleaved 1 + (p-1)/(pv) times as many."""
    job = job_of(gpus=8, batch_tokens=64 * 4096)
    kinds = (("gpipe", 1), ("1f1b", 1), ("interleaved", 2))
    layouts = Layouts.of([Layout(pipeline=8, chunks=v, schedule=name) for name, v in kinds])
    held = rank_memory(job, layouts, "first")["activations"]
    each = dict(zip([name for name, _ in kinds], held, strict=True))
    layer = layer_activations(job, Layouts.of([Layout()]))[0][0]
    assert each["gpipe"] - each["1f1b"] == pytest.approx((64 - 8) * 4 * layer, rel=1e-9)
    more = 8 * 7 / 16 * 4 * layer
    # With two chunks the stage has as many layers as before
    assert each["interleaved"] - each["1f1b"] == pytest.approx(more, rel=1e-9)


# -- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "v", "schedule", "left"),
    [
        *(
            (4, 1, "1f1b", 1),
            (8, 1, "gpipe", 1),
            (4, 2, "interleaved", 1),
            (8, 4, "interleaved", 1),
        ),
        *((4, 1, "zb-h1", 1 / 3), (4, 2, "zb-v", 0)),
    ],
)
@pytest.mark.parametrize("m", [8, 64])
def test_bubbles_are_the_formula(p, v, schedule, left, m):
    """Idle over the ideal time. The output layer of a tiny vocabulary adds a thousandth to it."""
    shape = published.gpt("gpt", 64, 8192, 64, 128, positions=0)
    cluster = cluster_of("h100", gpus=p)
    job = Job(shape=shape, cluster=cluster, batch_tokens=m * 4096, sequence=4096)
    spent = seconds_of(job, pipeline=p, chunks=v, schedule=schedule)
    ideal = spent["computing"] + spent["communication"]
    assert spent["bubble"] / ideal == pytest.approx(
        idle_over_ideal(p, m, num_chunks=v) * left, rel=0.003
    )


def test_products_are_as_fast_as_they_were_measured():
    """By shape, on three GPU types: the curve has no constant of its own.

    Mean error 5% on A100 and 4% on H800, where large products were given (best and sustained rate);
    18% on B200, whose measured efficiency jumps by a third between neighbouring shapes.
    """
    data = json.loads((DATA / "matrix_products.json").read_text())
    for name, most in (("a100-pcie", 0.06), ("h800", 0.05), ("b200", 0.20)):
        part = data["gpus"][name]
        cluster = cluster_of(part["gpu"], gpus=8, **part["constants"])
        errors = []
        for m, n, k, output, measured in part["rows"]:
            seconds = float(matrix_seconds(cluster, m, n, k, output=output))
            errors.append(2 * m * n * k / seconds / cluster.peak / measured - 1)
        assert np.mean(np.abs(errors)) < most, name
        assert abs(np.mean(errors)) < 0.05, name


def errors_of(name: str) -> dict[str, float]:
    return {row.name: row.error for row in published.SETS[name](ROWS)}


def test_megatron_on_a100_2021():
    """SC21's ten rows, laid out as its scripts do: nine within 10% of TFLOP/s, 76.1B 10.5%."""
    errors = errors_of("sc21")
    assert len(errors) == 10
    assert sum(abs(error) <= 0.10 for error in errors.values()) >= 9
    assert max(map(abs, errors.values())) <= 0.11
    assert np.mean(np.abs([*errors.values()])) <= 0.07
    layouts = {row.name: row.answer.layouts[0] for row in published.sc21(ROWS)}
    chunks = [layout.chunks for layout in layouts.values()]
    assert chunks == [1, 1, 1, 1, 1, 3, 2, 2, 3, 1]  # of examples/sc21/run_table_1.sh


def test_megatron_on_a100_2022():
    errors = errors_of("korthikanti")
    assert len(errors) == 8
    assert max(map(abs, errors.values())) <= 0.05


@pytest.mark.parametrize("pipeline", [1, 2])
@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_sums_at_the_models_ends_are_waited_for(pipeline, sequence_parallel):
    """As many collectives as ``layout_bytes`` counts, at the stage that the others wait for."""
    shape = published.gpt("gpt", 8, 4096, 32, 51200)
    job = Job(
        shape=shape,
        cluster=cluster_of("a100", gpus=8 * pipeline),
        batch_tokens=16 * 2048,
        sequence=2048,
        sequence_parallel=sequence_parallel,
        overlap_backward=False,
        overlap_pipeline=False,
    )
    layout, m, t = Layout(tensor=8, pipeline=pipeline), 16, np.array(8)
    stream = 2048 * shape.hidden * 2
    one = gather_seconds(job.cluster, stream, t, np.array(1))
    sent = [x for x in layout_bytes(job, layout, stage="last") if x.side == "tensor"]
    calls = {x.op: x.nbytes / stream / m for x in sent if x.what == "activations"}
    waited = 2 * calls["all_reduce"] if not sequence_parallel else 2 * calls["reduce_scatter"]
    loss = sum(x.nbytes for x in sent if x.what == "loss") / m / 3
    want = waited * one + 3 * all_reduce_seconds(job.cluster, loss, t, np.array(1))
    between = {}
    for tied in (True, False):
        changed = replace(job, shape=replace(shape, tied=tied))
        between[tied] = seconds_of(changed, tensor=8, pipeline=pipeline)["communication"]
    apart = replace(job, vocab_parallel=False, shape=replace(shape, tied=False))
    within = seconds_of(apart, tensor=8, pipeline=pipeline)["communication"]
    layers = 8 / pipeline * 4 * 2 * one
    assert between[False] - within == pytest.approx(m * (want - layers))
    matrix = 51200 * 4096 / 8 * 4 if pipeline > 1 else 0
    two = all_reduce_seconds(job.cluster, matrix, np.array(2.0), np.array(8.0))
    assert between[True] - between[False] == pytest.approx(two if matrix else 0.0, abs=1e-9)
    some = [  # beside the gradients of the output layer's weights
        seconds_of(
            replace(apart, vocab_parallel=ends, overlap_backward=True), tensor=8, pipeline=pipeline
        )["communication"]
        for ends in (True, False)
    ]
    assert 0 < some[0] - some[1] < between[False] - within


def test_a_sum_of_16_bit_gradients_is_a_kernel_of_its_own():
    """It reads gradient and sum and writes the sum; summed in float32 the product does it."""
    cluster, sizes = cluster_of("a100", gpus=8), (2048, 10240, 20480)
    parts = {
        states: linear_seconds(
            cluster, *sizes, sums=SUM_BYTES[states], apart=SUM_APART_BYTES[states]
        )[2]
        for states in ("bf16", "bf16-both-gradients", "bf16-float32-gradients")
    }
    product = float(matrix_seconds(cluster, 10240, 20480, 2048))
    for states, moved in (("bf16", 6), ("bf16-both-gradients", 10)):
        seconds = product + moved * 10240 * 20480 / cluster.stream + cluster.kernel_seconds
        assert parts[states] == pytest.approx(seconds)
    fused = float(matrix_seconds(cluster, 10240, 20480, 2048, output=8))
    assert parts["bf16-float32-gradients"] == pytest.approx(fused)


def test_utilization_is_counted_as_published():
    """MFU and HFU of the measured seconds, within the digits of the paper.

    Its HFU of selective recomputation counts all of attention twice (s/3h beside s/6h), backward
    too; ours counts what is computed again, the forward.
    """
    measured = {row.name: row for row in published.korthikanti(ROWS)}
    for name, *_, mfu, hfu in ROWS["korthikanti"]["rows"]:
        row = measured[f"{name} selective"]
        job, peak = row.answer.job, row.measured * row.answer.job.cluster.gpus * 312e12
        assert 100 * model_flops(job) / peak == pytest.approx(mfu, rel=0.005)
        attention = 12 * job.batch_tokens * job.shape.layers * job.sequence * job.shape.hidden
        assert 100 * (model_flops(job) + attention) / peak == pytest.approx(hfu, rel=0.005)
        again = hardware_flops(job, row.answer.layouts)[0] - model_flops(job)
        assert again == pytest.approx(attention / 3)


def test_megatron_core_on_h100():
    errors = errors_of("megatron_core")
    assert len(errors) == 9
    assert max(map(abs, errors.values())) <= 0.15
    assert np.mean(np.abs([*errors.values()])) <= 0.08


def test_fsdp_on_h100():
    """All ran on 80 GB, and fit here."""
    rows = published.llm_foundry(ROWS)
    assert len(rows) == 14
    assert max(abs(row.error) for row in rows) <= 0.08
    assert np.mean([abs(row.error) for row in rows]) <= 0.04
    assert all(row.memory <= row.answer.job.cluster.memory for row in rows)


def test_rows_that_were_held_out():
    """80 runs read after the planner was made: every one ran on 80 GB, and every one fits here.

    760M on A100 with short sequences was at the limit of its memory, where the allocator gives back
    and asks again: 35 and 45% faster here.
    """
    rows = published.mpt(ROWS)
    assert len(rows) == 80
    errors = np.abs([row.error for row in rows])
    assert errors.mean() <= 0.09
    assert np.quantile(errors, 0.9) <= 0.17
    assert all(row.memory <= row.answer.job.cluster.memory for row in rows)


def test_rows_of_a_smaller_card_were_held_out():
    """43 runs on A100 of 40 GB, read after the planner was made, nothing fitted: each fits, as it
    did; within 13%, on average 8%. 1B on 32 GPUs is 36% too fast here: it was measured a fifth
    slower than on 16 and on 64 GPUs, which is no matter of the layout.
    """
    rows = published.mpt_40(ROWS)
    assert len(rows) == 43
    errors = {row.name: row.error for row in rows}
    assert abs(errors.pop("1b a100-40, 2048 x 10, 32 GPUs")) <= 0.4
    assert max(map(abs, errors.values())) <= 0.14
    assert np.mean(np.abs([*errors.values()])) <= 0.08
    assert all(row.memory <= row.answer.job.cluster.memory for row in rows)


def test_torchtitan_was_held_out():
    """14 runs read after the planner was made: 7 to 13% too fast on A100, 18 to 29% on H100.

    Those H100 may take 500 W: the source says that 700 W are faster; the planner has no watts.
    Between them it is right to 10%: compiled or not, tensor collectives hidden or not.
    """
    rows = {row.name: row for row in published.torchtitan(ROWS)}
    assert len(rows) == 14
    for gpu, most, mean in (("a100", 0.13, 0.10), ("h100", 0.30, 0.25)):
        errors = [row.error for name, row in rows.items() if f" {gpu}," in name]
        assert min(errors) > 0 and max(errors) <= most and np.mean(errors) <= mean
    faster = [
        (rows[name], rows[f"{name}, {how}"])
        for name, how in (
            ("llama-3-8b h100, 8 GPUs, tensor 1, half", "compiled"),
            ("llama-3-8b h100, 128 GPUs, tensor 1, half", "compiled"),
            ("llama-3-70b h100, 256 GPUs, tensor 8, full, compiled", "async"),
            ("llama-3-8b h100, 64 GPUs, tensor 8, half, compiled", "async"),
        )
    ]
    for slow, fast in faster:
        assert fast.predicted / slow.predicted == pytest.approx(
            fast.measured / slow.measured, rel=0.1
        )
    for row, (*_, gib) in zip(rows.values(), ROWS["torchtitan"]["rows"], strict=True):
        assert row.memory <= row.answer.job.cluster.memory
        if gib:  # of what the allocator held
            assert 0.85 <= row.memory / (gib * GIB) <= 1.05


def test_what_ran_fits():
    """At least 90% of all published runs; 405B on 8,192 GPUs is 6% too large here."""
    rows = [row for name in published.SETS for row in published.SETS[name](ROWS)]
    fit = [row.memory <= row.answer.job.cluster.memory for row in rows]
    assert len(fit) >= 170
    assert np.mean(fit) >= 0.98


def test_layouts_of_a_mixture_in_the_measured_order():
    """Qwen3-235B's four, FSDP first: its gathers hide behind what waits for the node's links."""
    rows = sorted(published.qwen3(ROWS), key=lambda row: row.measured)
    assert rows[0].name.startswith("FSDP")
    assert [row.predicted for row in rows] == sorted(row.predicted for row in rows)
    assert np.mean([abs(row.error) for row in rows]) <= 0.16


def test_the_layout_that_the_planner_likes_best_is_nearly_the_fastest():
    """Asked: within 15% of the best measured one on average."""
    groups = comparable(ROWS)
    assert len(groups) == 5
    assert np.mean([regret(group) for group in groups]) <= 0.05
    worst = sorted(groups[-1], key=lambda row: -row.predicted)[:2]
    assert 0 <= regret(worst) < 0.25
    with pytest.raises(ValueError, match="group is empty"):
        regret([])


def test_largest_runs():
    """Llama 3 405B: figures of a secondary source, on a network with Ethernet."""
    assert max(map(abs, errors_of("llama3").values())) <= 0.20


def test_what_is_slow_is_known_to_be_slow():
    job = job_of(gpus=16, batch_tokens=64 * 4096)
    # Tensor parallelism over two nodes
    inside = seconds_of(job, data=2, tensor=8, stage=1)
    across = seconds_of(job, data=1, tensor=16)
    assert across["total"] > 1.3 * inside["total"]
    assert across["communication"] > 1.5 * inside["communication"]
    # A pipeline with as many micro-batches as stages
    few = seconds_of(job, data=4, pipeline=4, micro_batch=4)
    many = seconds_of(job, data=4, pipeline=4, micro_batch=1)
    assert few["bubble"] > 3 * many["bubble"]
    # Layers shorter than the host needs to start them: twice the work in the same time
    small = job_of("gpt2-large", gpus=8, batch_tokens=8 * 1024 * 8, sequence=1024)
    one_each = seconds_of(small, data=1, tensor=4, pipeline=2, micro_batch=1)["computing"]
    two_each = seconds_of(small, data=1, tensor=4, pipeline=2, micro_batch=2)["computing"]
    assert one_each > 1.6 * two_each
    # Tiny matrices: far from the peak
    cluster = cluster_of("h100", gpus=8)
    assert 2 * 256**3 / float(matrix_seconds(cluster, 256, 256, 256)) < 0.02 * cluster.peak


def test_collectives_are_as_fast_as_nccls_model():
    cluster = cluster_of("h100", gpus=64)
    # Base latency, then a step for each other rank: over NVLink, or one over the network
    for size, microseconds in ((8, 8.4 + 7 * 3.4), (16, 8.4 + 14 * 3.4 + 14)):
        assert float(gather_seconds(cluster, 0, size, 1)) == pytest.approx(1e-6 * microseconds)
    ring = 2 * 7 / 8 * 1e9 / (0.75 * 450e9) + 1e-6 * (8.4 + 14 * 3.4)
    assert float(all_reduce_seconds(cluster, 1e9, 8, 1)) == pytest.approx(ring)
    assert float(gather_seconds(cluster, 1e9, 1, 1)) == 0
    # One card carries a ring of ranks 8 apart; eight cards one of neighbours
    apart, neighbours = (float(gather_seconds(cluster, 8e9, 16, stride)) for stride in (8, 1))
    assert apart > 6 * neighbours


# -- the planner ----------------------------------------------------------------------------------


def test_all_plans_of_a_large_model_in_seconds():
    """405B on 16,384 GPUs: under 5 s and 1 GB. Measured 0.4 s alone on 2 CPU cores, 2026-11."""
    job = job_of("llama-3-405b", 16384, batch_tokens=2048 * 8192, sequence=8192)
    tracemalloc.start()
    started = time.process_time()  # what other processes take is not ours
    answer = plan(job)
    spent, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(answer.layouts) > 30_000
    assert spent < 5
    assert peak < 300e6
    best = answer.layouts[answer.fastest]
    assert best.pipeline > 1
    assert best.tensor > 1


def test_a_small_change_is_answered_in_200_ms():
    job = job_of(gpus=64)
    plan(job)
    started = time.process_time()
    plan(job)
    assert time.process_time() - started < 0.5  # 0.15 s measured; a slider moves in one process


def test_every_layout_divides():
    job = job_of("qwen3-30b-a3b", gpus=48, batch_tokens=96 * 4096)
    layouts = all_layouts(job)
    assert np.all(layouts.gpus == 48)
    m = layouts.micro_batches(job)
    assert np.all(m == np.round(m))
    assert np.all(np.mod(layouts.data * layouts.context * layouts.tensor, layouts.expert) == 0)
    shape = job.shape
    for name, whole in (("tensor", shape.heads), ("expert", shape.experts)):
        assert np.all(np.mod(whole, getattr(layouts, name)) == 0)
    kinds = {name: len(np.unique(values)) for name, values in layouts.arrays().items()}
    wanted = dict(tensor=5, pipeline=5, chunks=3, expert=5, stage=4, recompute=3, offload=2)
    assert all(kinds[name] >= least for name, least in wanted.items()), kinds


@pytest.mark.parametrize(
    ("model", "gpus", "pipeline", "chunks"),
    [
        ("llama-3-405b", 16384, 16, 8),  # Llama 3: one layer a chunk, embedding and output as one
        ("llama-3-405b", 16384, 16, 4),
        ("gpt-3-175b", 64, 8, 12),  # Megatron's virtual pipeline of 12
        ("deepseek-v3", 2048, 16, 1),  # 61 layers: the last stage has one
    ],
)
def test_pipelines_of_published_runs_are_among_the_layouts(model, gpus, pipeline, chunks):
    shape = published.gpt(model, 96, 12288, 96, 51200) if "gpt" in model else published_model(model)
    cluster = cluster_of("h100", gpus=gpus)
    job = Job(shape=shape, cluster=cluster, batch_tokens=2048 * 8192)
    layouts = all_layouts(job)
    assert np.any((layouts.pipeline == pipeline) & (layouts.chunks == chunks))
    first, middle, last = stage_layers(job, layouts)
    assert min(part.min() for part in (first, middle, last)) >= 1
    two = layouts.pipeline > 1
    assert np.all((first + middle * (layouts.pipeline - 2) + last)[two] == shape.layers)


def test_no_layout_that_can_be_judged_is_faster_than_the_fastest():
    job = job_of("llama-3-405b", 16384, batch_tokens=2048 * 8192, sequence=8192)
    sides = dict(data=128, tensor=8, pipeline=16, stage=1)
    given = judge(job, Layout(**sides, chunks=8, schedule="interleaved"))
    answer = plan(job)
    assert given.fits[0]
    assert answer.seconds["total"][answer.fastest] <= given.seconds["total"][0]


def test_another_cluster_has_the_nearest_batch_that_divides():
    """405B on one node more: 2,049 sequences, not one for each of 16,392 GPUs."""
    job = job_of("llama-3-405b", 16384, batch_tokens=2048 * 8192, sequence=8192)
    assert with_gpus(job, 16392).sequences == 2049
    assert with_gpus(job, 32768) == job_of(
        "llama-3-405b", 32768, batch_tokens=2048 * 8192, sequence=8192
    )


@pytest.mark.parametrize(
    ("model", "gpu", "gpus"), [("llama-3-8b", "h100", 64), ("gpt2-large", "a100", 8)]
)
def test_the_answer_is_consistent(model, gpu, gpus):
    answer = plan(job_of(model, gpus, gpu))
    assert (answer.simplest == answer.fastest) == (model == "llama-3-8b")
    total = answer.seconds["total"]
    assert answer.fits[answer.fastest]
    assert total[answer.fastest] == total[answer.fits].min()
    simple = answer.simplest
    assert answer.fits[simple]
    assert total[simple] <= 1.05 * total[answer.fastest]
    near = np.flatnonzero(answer.fits & (total <= 1.05 * total[answer.fastest]))
    each = complexity(answer.layouts.take(near))
    assert complexity(answer.layouts.take(np.array([simple])))[0] == each.min()
    for name, parts in (("seconds", answer.seconds), ("memory", answer.memory)):
        summed = sum(v for key, v in parts.items() if key not in ("total", "host"))
        assert np.allclose(summed, parts["total"]), name
        assert all(np.all(values >= 0) for values in parts.values()), name
    numbers = answer.numbers(answer.fastest, tokens=15e12)
    assert 0.2 < numbers["mfu"] <= numbers["hfu"] < 0.75
    assert numbers["gpu_hours"] == pytest.approx(numbers["days"] * 24 * gpus)


def test_why_the_others_lost():
    answer = plan(job_of(gpus=64))
    best = answer.best_of_families()
    reason, facts = answer.why(best["ddp"])
    assert (reason, facts["most"]) == ("memory", "optimizer_state")
    reason, facts = answer.why(best["full_recompute"])
    assert (reason, facts["most"]) == ("slower", "computing")
    assert facts["percent"] == pytest.approx(
        100 * (answer.seconds["total"][best["full_recompute"]] / answer.seconds["total"].min() - 1),
        rel=0.3,
    )
    assert answer.why(answer.fastest) == ("same", {})


def test_what_more_would_change():
    found = what_if(plan(job_of(gpus=8, batch_tokens=64 * 4096)))
    assert found["gpu"] == {"gpus": 9, "whole_nodes": 8}
    assert found["node"]["gpus"] == 16
    assert 1.5 < found["node"]["faster"] < 2.6
    assert found["memory"]["memory"] > 90e9
    assert found["memory"]["faster"] >= 1


def test_a_model_that_fits_nowhere():
    """By how much, and the smallest cluster that would do."""
    job = job_of("deepseek-v3", gpus=8, batch_tokens=64 * 4096)
    with pytest.raises(DoesNotFit) as refused:
        plan(job)
    said = str(refused.value)
    assert "GB too many" in said
    needed = int(said.split("has ")[-1].split()[0])
    assert 32 <= needed <= 256
    larger = job_of("deepseek-v3", gpus=needed, batch_tokens=needed * 16 * 4096)
    assert plan(larger).fits.any()


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: job_of(gpus=0), "gpus=0: a cluster has 1 GPU or more"),
        (lambda: job_of(gpus=12), "gpus=12 are not whole nodes of 8"),
        (lambda: job_of(gpu="h101"), "give one of v100, a100-40"),
        (lambda: job_of(model="gpt-5"), "model='gpt-5' is unknown"),
        (lambda: job_of(batch_tokens=5000), "no whole number of sequences of 4,096"),
        (lambda: job_of(batch_tokens=-4096), "batch_tokens=-4096"),
        (lambda: job_of(states="fp4"), "states='fp4' is unknown"),
        (lambda: job_of(attention="slow"), "attention='slow' is unknown"),
        (lambda: Layout(stage=4), "stage=4 of ZeRO"),
        (lambda: Layout(recompute="some"), "recompute='some'"),
        (lambda: Layout(tensor=0), "tensor=0"),
        (lambda: Layout(pipeline=2, chunks=2), "chunks=2 with schedule='1f1b'"),
        (
            lambda: plan(job_of("gpt2-large", gpus=64, batch_tokens=7 * 1024, sequence=1024)),
            "can be divided by no layout of 64 GPUs: the fewest data-parallel ranks are 2; give "
            "8,192 tokens",
        ),
        (lambda: judge(job_of(gpus=64), Layout(data=8)), "are 8 GPUs: the cluster has 64"),
        (lambda: judge(job_of(gpus=64), Layout(data=64, micro_batch=5)), "does not divide 1024"),
        (
            lambda: judge(job_of(gpus=48, batch_tokens=48 * 4096), Layout(data=16, tensor=3)),
            "32 of",
        ),
        (lambda: judge(job_of(gpus=64), Layout(data=1, pipeline=64)), "only 32 layers"),
        (lambda: read_profile("/nowhere.json"), "cannot be read"),
    ],
)
def test_bad_input_is_refused_in_words(build, said):
    with pytest.raises(ValueError) as refused:
        build()
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("constant", "value", "said"),
    [
        ("memory", "80 GB", "memory='80 GB': give a number"),
        ("node", "8", "node='8': give a whole number"),
        ("node", 8.5, "node=8.5: give a whole number"),
        ("peak", None, "peak=None: give a number"),
        ("bandwidth", True, "bandwidth=True: give a number"),
        ("peak", float("nan"), "peak=nan: give a number"),
    ],
)
def test_a_profile_of_no_numbers_is_refused_in_words(constant, value, said, tmp_path):
    path = profile_of(tmp_path)  # as profiles were before their curve was read
    constants = json.loads(path.read_text())["constants"]
    assert read_profile(path, gpus=8) == cluster_of("h100", gpus=8)
    path.write_text(json.dumps({"constants": constants | {constant: value}}))
    with pytest.raises(ValueError) as refused:
        read_profile(path, gpus=8)
    assert said in str(refused.value) and "mine.json" in str(refused.value)


def profile_of(tmp_path, **more):
    usual = cluster_of("h100", gpus=8)
    names = [field.name for field in fields(usual) if field.name != "efficiency"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"constants": {n: getattr(usual, n) for n in names}, **more}))
    return path


def test_a_measured_curve_times_the_products_of_a_plan(tmp_path):
    flat, slow = ({"4096": small, "16384": 1.0} for small in (1.0, 0.25))
    clusters = [read_profile(profile_of(tmp_path, efficiency=e), gpus=8) for e in (flat, slow)]
    flops, best = 2 * 4096**3, clusters[0].best_matrix
    for side, share in ((4096, 0.25), (8192, 0.625), (16384, 1.0), (32768, 1.0), (2048, 0.25)):
        each = [float(matrix_seconds(c, side, side, side)) for c in clusters]
        assert each[1] == pytest.approx(flops * (side / 4096) ** 3 / (share * best))
        assert each[0] == pytest.approx(share * each[1])
    # As many FLOPs in another form; and three of them are three times one
    for form, count in (((2048, 8192, 4096), 1), ((4096, 4096, 4096), 3)):
        seconds = matrix_seconds(clusters[1], *form, count=count)
        assert seconds == pytest.approx(count * flops / (0.25 * best))
    assert matrix_seconds(clusters[1], 1, 1, 1) == clusters[1].kernel_seconds
    jobs = [
        Job(shape=published_model("llama-3-8b"), cluster=c, batch_tokens=2**19, sequence=8192)
        for c in clusters
    ]
    layout = Layout(data=8, stage=3, recompute="full")  # products of 8192 x 4096 and more
    seconds = [judge(job, layout).numbers(0)["seconds"] for job in jobs]
    assert 1.2 < seconds[1] / seconds[0] < 1.6  # at a share of 0.6, and most of a step is products
    assert plan(jobs[1]).seconds["total"].min() < 0.9 * seconds[1]  # there are larger ones


@pytest.mark.parametrize(
    ("efficiency", "said"),
    [
        ({"64": 0.0}, r"efficiency=.*shares above 0, at most 1"),
        ({"64": 1.5}, r"efficiency=.*shares above 0, at most 1"),
        ({"0": 1.0}, r"efficiency=.*sides of 1 or more"),
        ({"wide": 1.0}, r"mine\.json has efficiency=.*for each side"),
        ([1, 2], r"mine\.json has efficiency=.*for each side"),
    ],
)
def test_a_curve_that_is_none_is_refused_in_words(efficiency, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_profile(profile_of(tmp_path, efficiency=efficiency), gpus=8)


def test_a_profile_that_is_no_text_is_named(tmp_path):
    (tmp_path / "mine.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"mine\.json' cannot be read"):
        read_profile(tmp_path / "mine.json")


def test_the_smallest_cluster_says_that_it_needs_the_host():
    """405B: 56 H100 with offload, and so no more than that is promised."""
    with pytest.raises(DoesNotFit, match="has 56 GPUs, with the optimizer on the host"):
        plan(job_of("llama-3-405b", gpus=16, batch_tokens=4_194_304))
    small = job_of(gpus=1, memory=24e9, batch_tokens=4096 * 8, node=8)
    with pytest.raises(DoesNotFit) as refused:
        plan(replace(small, cluster=replace(small.cluster, host_memory=1.0)))
    assert str(refused.value).endswith("GPUs")


def test_judge_is_the_same_as_the_plan():
    job = job_of(gpus=64)
    answer = plan(job)
    alone = judge(job, answer.layouts[answer.fastest])
    assert alone.seconds["total"][0] == answer.seconds["total"][answer.fastest]
    assert alone.memory["total"][0] == answer.memory["total"][answer.fastest]


def test_constants_have_a_source():
    for gpu in gpu_types():
        assert len(how_found(gpu)) > 20
        cluster = cluster_of(gpu, gpus=8)
        assert cluster.sustained_matrix <= cluster.best_matrix <= cluster.peak


# Keys of torchtitan 0.2's config/job_config.py that the file may use
TITAN = {
    "model": {"name", "flavor"},
    "training": {"local_batch_size", "global_batch_size", "seq_len"},
    "parallelism": {
        *("data_parallel_replicate_degree", "data_parallel_shard_degree"),
        *("fsdp_reshard_after_forward", "tensor_parallel_degree", "context_parallel_degree"),
        *("pipeline_parallel_degree", "pipeline_parallel_schedule", "expert_parallel_degree"),
        *("pipeline_parallel_microbatch_size", "pipeline_parallel_layers_per_stage"),
        "pipeline_parallel_first_stage_less_layers",
        "pipeline_parallel_last_stage_less_layers",
    },
    "activation_checkpoint": {"mode", "selective_ac_option"},
}

# Arguments of Megatron-LM's megatron/training/arguments.py (commit 000c4ac, beside Megatron-Core
# 0.16) that the script may use, and what Megatron-Core calls them; "" where that has none
SAME = """
num-layers hidden-size ffn-hidden-size num-attention-heads tensor-model-parallel-size
pipeline-model-parallel-size context-parallel-size bf16 num-query-groups sequence-parallel
use-distributed-optimizer overlap-grad-reduce overlap-param-gather moe-router-topk
account-for-embedding-in-pipeline-split account-for-loss-in-pipeline-split moe-ffn-hidden-size
expert-model-parallel-size expert-tensor-parallel-size moe-shared-expert-intermediate-size
moe-grouped-gemm optimizer-cpu-offload use-precision-aware-optimizer kv-channels qk-layernorm
recompute-granularity recompute-method recompute-num-layers recompute-modules add-qkv-bias
normalization multi-latent-attention q-lora-rank kv-lora-rank v-head-dim qk-pos-emb-head-dim
qk-head-dim moe-router-enable-expert-bias moe-router-score-function
"""
MEGATRON = dict.fromkeys(SAME.split()) | {
    "num-experts": "num_moe_experts",
    "swiglu": "gated_linear_unit",
    "disable-bias-linear": "add_bias_linear",
    "decoder-last-pipeline-num-layers": "num_layers_in_last_pipeline_stage",
    "grad-reduce-in-bf16": "grad_reduce_in_fp32",
    "num-layers-per-virtual-pipeline-stage": "virtual_pipeline_model_parallel_size",
    **dict.fromkeys(("seq-length", "max-position-embeddings", "micro-batch-size"), ""),
    **dict.fromkeys(("global-batch-size", "group-query-attention"), ""),
    **dict.fromkeys(("untie-embeddings-and-output-weights", "position-embedding-type"), ""),
}

# -- files and the command ------------------------------------------------------------------------


def test_files_agree_with_the_layout():
    job = job_of(gpus=64)
    made = files(
        job, Layout(data=64, stage=2, micro_batch=4, recompute="full", offload="optimizer")
    )
    config = json.loads(made["deepspeed.json"])
    size, accumulate = (
        config["train_micro_batch_size_per_gpu"],
        config["gradient_accumulation_steps"],
    )
    assert config["train_batch_size"] == size * accumulate * 64 == 1024
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"

    layout = Layout(data=8, tensor=4, pipeline=2, chunks=2, schedule="interleaved", stage=1)
    made = files(job, layout)
    assert "deepspeed.json" not in made  # it has no chunks
    titan = tomllib.loads(made["torchtitan.toml"])["parallelism"]
    assert titan["tensor_parallel_degree"] == 4
    assert titan["pipeline_parallel_schedule"] == "Interleaved1F1B"
    sides = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
    sides += ("pipeline_parallel", "context_parallel")
    assert np.prod([titan[f"{side}_degree"] for side in sides]) == 64
    assert "--num-layers-per-virtual-pipeline-stage 8" in made["megatron.sh"]
    assert "#SBATCH --nodes=8" in made["train.slurm"]
    assert "--nproc-per-node=8" in made["torchrun.sh"]
    assert tomllib.loads(made["torchtitan.toml"]).keys() <= TITAN.keys()
    for part, keys in tomllib.loads(made["torchtitan.toml"]).items():
        assert keys.keys() <= TITAN[part], part
    assert titan["pipeline_parallel_layers_per_stage"] == 8


def test_deepspeed_json_says_what_deepspeed_takes():
    """With autotp_size all ranks count for the batch, tensor ranks too: it is left to DeepSpeed."""
    job = job_of(gpus=64)
    config = json.loads(files(job, Layout(data=16, tensor=4, stage=1))["deepspeed.json"])
    assert "train_batch_size" not in config
    steps = config["gradient_accumulation_steps"] * config["train_micro_batch_size_per_gpu"]
    assert 16 * steps == job.sequences
    explanation = explain(config, world_size=64, version="0.16.9")
    assert not explanation.to_dict()["refused"]
    said = " ".join(finding.text for finding in explanation.findings)
    assert strings.t("explain.batch.tensor", tensor=4) in said
    # What the planner counts: float32 gradients, where ZeRO can keep them
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    plain = json.loads(files(job, Layout(data=64))["deepspeed.json"])
    halves = json.loads(files(job_of(states="bf16"), Layout(data=64, stage=1))["deepspeed.json"])
    assert "data_types" not in plain and "data_types" not in halves
    assert plain["train_batch_size"] == job.sequences


@pytest.mark.parametrize(
    ("layout", "why"),
    [
        (dict(data=32, pipeline=2), "PipelineModule in the training script"),
        (dict(data=32, pipeline=2, stage=2), "ZeRO 2 and 3 refuse"),
        (dict(data=64, expert=8, stage=1), "deepspeed.moe"),
        (dict(data=64, expert=8, stage=3), "deepspeed.moe"),
    ],
)
def test_deepspeed_json_is_left_out_where_it_describes_another_layout(layout, why):
    job = job_of("mixtral-8x7b", gpus=64)
    assert "deepspeed.json" not in files(job, Layout(**layout))
    assert why in missing(Layout(**layout))


@pytest.mark.parametrize(
    ("model", "pipeline", "chunks"),
    [
        ("llama-3-70b", 4, 4),
        ("llama-3-70b", 8, 1),
        ("llama-3-405b", 16, 8),
        ("llama-3-405b", 16, 1),
        ("deepseek-v3", 16, 1),
        ("deepseek-v3", 7, 3),
    ],
)
def test_libraries_cut_a_pipeline_as_the_planner_does(model, pipeline, chunks):
    """torchtitan's rule: layers and what first and last have less, over those of a stage."""
    job = job_of(model, 8 * pipeline, batch_tokens=64 * pipeline * 4096)
    schedule = "interleaved" if chunks > 1 else "1f1b"
    layout = Layout(data=8, pipeline=pipeline, chunks=chunks, schedule=schedule)
    made, layers = files(job, layout), job.shape.layers
    cut = tomllib.loads(made["torchtitan.toml"])["parallelism"]
    each, first, last = (
        cut[f"pipeline_parallel_{name}"]
        for name in ("layers_per_stage", "first_stage_less_layers", "last_stage_less_layers")
    )
    assert (layers + first + last) / each == pipeline * chunks
    assert max(first, last) <= each
    own = [int(part[0]) for part in stage_layers(job, Layouts.of([layout]))]
    assert own == [each * chunks - first, each * chunks, each * chunks - last]
    said = made["megatron.sh"]
    assert ("account-for-loss" in said) == (first == 1)
    assert (f"--decoder-last-pipeline-num-layers {own[2]} " in said) == (last > first)


def test_files_say_where_they_start_something_else():
    mixture, dense = job_of("qwen3-30b-a3b", gpus=64), job_of(gpus=64)
    again = Layout(data=64, stage=3, recompute="selective")
    titan = files(dense, again)["torchtitan.toml"]
    assert tomllib.loads(titan)["activation_checkpoint"]["selective_ac_option"] == "op"
    assert "# for torchtitan 0.2" in titan and "every second matrix product" in titan
    modules = {
        "layernorm moe_act": mixture,
        "layernorm mlp": dense,
        "layernorm moe_act mlp shared_experts": job_of("deepseek-v3", gpus=64),
        "core_attn": job_of(gpus=64, attention="unfused"),
    }
    for names, job in modules.items():
        said = files(job, again)["megatron.sh"]
        assert said.endswith(f"--recompute-modules {names}\n")
        assert ("matrix products are computed again" in said) == ("mlp" in names)
    bubbles = files(dense, Layout(data=32, pipeline=2, schedule="zb-h1"))
    assert all("no zb-h1 in" in bubbles[name] for name in ("torchtitan.toml", "megatron.sh"))
    spread = files(mixture, Layout(data=64, expert=8))["torchtitan.toml"]
    sides = tomllib.loads(spread)["parallelism"]
    assert (sides["data_parallel_shard_degree"], sides["expert_parallel_degree"]) == (64, 8)
    assert "all else is sharded" in spread


def megatron_flags(text: str) -> dict[str, list[str]]:
    words = text.partition("pretrain_gpt.py")[2].replace("\\\n", " ").split("--")[1:]
    return {name: values for name, *values in map(str.split, words)}


@pytest.mark.parametrize(
    ("model", "layout", "more"),
    [
        ("llama-3-8b", dict(data=8, tensor=8, stage=1, recompute="full"), {}),
        ("llama-3-405b", dict(data=1, tensor=4, pipeline=16, stage=1), {}),
        ("qwen2.5-7b", dict(data=16, tensor=4, offload="optimizer"), {}),
        ("qwen3-30b-a3b", dict(data=64, expert=8, stage=1, recompute="selective"), {}),
        ("gpt-neox-20b", dict(data=32, context=2), dict(states="bf16")),
        ("mixtral-8x7b", dict(data=8, pipeline=8, expert=8), dict(states="float32")),
        ("deepseek-v3", dict(data=8, pipeline=8, expert=8, stage=1, recompute="selective"), {}),
        ("deepseek-v2-lite", dict(data=64, expert=8, stage=1), {}),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of Megatron's imports
def test_megatron_takes_the_arguments(model, layout, more, monkeypatch):
    """Names as in its arguments.py, what they stand for in the installed Megatron-Core, which also
    checks the values against each other."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which Megatron adds
    from megatron.core.distributed.distributed_data_parallel_config import (
        DistributedDataParallelConfig,
    )
    from megatron.core.optimizer.optimizer_config import OptimizerConfig
    from megatron.core.transformer import transformer_config as core

    job = job_of(model, gpus=64, **more)
    said = files(job, Layout(**layout))["megatron.sh"]
    given = megatron_flags(said)
    assert given.keys() <= MEGATRON.keys()
    kind = core.MLATransformerConfig if job.shape.kv_rank else core.TransformerConfig
    fields = kind.__dataclass_fields__
    others = (
        DistributedDataParallelConfig.__dataclass_fields__ | OptimizerConfig.__dataclass_fields__
    )
    values = {}
    for name, own in given.items():
        field = MEGATRON[name]
        field = name.replace("-", "_") if field is None else field
        assert not field or field in fields or field in others, name
        if field in fields:
            values[field] = [int(v) if v.isdecimal() else v for v in own]
            if name != "recompute-modules":
                values[field] = values[field][0] if own else name != "disable-bias-linear"
    kind(**values, pipeline_dtype="bf16", use_cpu_initialization=True)
    # The model's own layers: without these flags Megatron would train another one
    shape = job.shape
    assert ("RMSNorm" in said) == (not shape.norm_bias)
    assert ("disable-bias-linear" in given) == (not shape.mlp_bias)
    assert ("add-qkv-bias" in given) == (shape.qkv_bias and not shape.mlp_bias)
    heads = int(given.get("kv-channels", [shape.hidden // shape.heads])[0])
    assert shape.kv_rank or heads == shape.head_dim
    assert ("qk-layernorm" in given) == (shape.qk_norm or shape.kv_rank > 0)
    # Its own conditions
    cut = layout.get("tensor", 1) > 1 or layout.get("context", 1) > 1
    assert ("export CUDA_DEVICE_MAX_CONNECTIONS=1\n" in said) == cut
    if "optimizer-cpu-offload" in given:
        assert {"use-precision-aware-optimizer", "use-distributed-optimizer"} <= given.keys()
    assert ("grad-reduce-in-bf16" in given) == (job.states == "bf16")
    assert "moe-grouped-gemm" not in given or "bf16" in given


def test_a_name_that_no_file_likes_does_not_break_the_files(tmp_path):
    """That of a folder, which may be anything."""
    file = tmp_path / 'my "model"\n$(touch x); 모델' / "config.json"
    file.parent.mkdir()
    file.write_text(config_text("llama"))
    job = Job(shape=read_config(file), cluster=cluster_of("h100", gpus=16), batch_tokens=2**20)
    made = files(job, Layout(data=16, stage=1))
    assert tomllib.loads(made["torchtitan.toml"])["model"]["flavor"] == file.parent.name
    assert "#SBATCH --job-name=my-model-touch-x-\n" in made["train.slurm"]
    for name in ("torchrun.sh", "megatron.sh", "train.slurm"):
        assert "touch x" not in made[name]


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.skipif(sys.platform == "win32", reason="no shell")
def test_shells_read_the_scripts(nodes, tmp_path):
    """``sbatch --test-only`` needs a cluster; a shell's own check of the grammar does not."""
    job = job_of(gpus=8 * nodes)
    made = files(job, Layout(data=nodes, tensor=4, pipeline=2, stage=1))
    for name, shell in (("torchrun.sh", "sh"), ("megatron.sh", "sh"), ("train.slurm", "bash")):
        (tmp_path / name).write_text(made[name])
        subprocess.run([shell, "-n", str(tmp_path / name)], check=True)
    directives = [x for x in made["train.slurm"].splitlines() if x.startswith("#SBATCH")]
    assert len(directives) == 6 and all(x.startswith("#SBATCH --") for x in directives)


def test_the_torchrun_script_starts_ranks(tmp_path):
    """The file as it is written, with a training script that says who it is."""
    job = job_of("gpt2-large", gpus=2, batch_tokens=8 * 1024, sequence=1024)
    (tmp_path / "torchrun.sh").write_text(files(job, Layout(data=2))["torchrun.sh"])
    (tmp_path / "train.py").write_text(
        "import os, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "open('rank' + os.environ['RANK'], 'w').write(str(dist.get_world_size()))\n"
        "dist.barrier(); dist.destroy_process_group()\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    where = dict(cwd=tmp_path, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"})
    done = subprocess.run(["sh", "torchrun.sh"], capture_output=True, text=True, **where)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [(tmp_path / f"rank{n}").read_text() for n in (0, 1)] == ["2", "2"]


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_the_command_answers(lang, capsys, tmp_path):
    arguments = ["plan", "--model", "llama-3-8b", "--gpus", "64", "--gpu", "h100"]
    assert cli.main([*arguments, "--tokens", "15e12", "--lang", lang, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for word in {"ko": ("가장 빠른 구성", "GPU 하나 더"), "en": ("Fastest: ", "one more node")}[
        lang
    ]:
        assert word in said
    assert {path.name for path in tmp_path.iterdir()} >= {"torchrun.sh", "train.slurm"}


def test_the_command_as_json(capsys):
    arguments = ["plan", "--model", "mixtral-8x7b", "--gpus", "32", "--gpu", "a100", "--json"]
    assert cli.main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["parameters"] == TOTALS["mixtral-8x7b"]
    assert said["fit"] <= said["layouts"]
    assert said["fastest"]["step_seconds"]["total"] <= said["simplest"]["step_seconds"]["total"]
    assert "torchtitan.toml" in said["files"]
    assert said["fastest"]["layout"]["schedule"] in SCHEDULES


def test_the_command_judges_a_layout(capsys):
    given = ["plan", "--gpus", "64", "--layout", "data=8,tensor=2,pipeline=4,chunks=2,stage=1"]
    assert cli.main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fits"]
    assert said["layout"]["schedule"] == "interleaved"
    assert sum(said["step_seconds"].values()) == pytest.approx(2 * said["seconds"])
    assert cli.main(["plan", "--gpus", "8", "--layout", "data=8", "--lang", "en"]) == 0
    assert "GB too many, most in optimizer state" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "0"], "a cluster has 1 GPU or more"),
        (["--gpus", "-8"], "a cluster has 1 GPU or more"),
        (["--batch", "12345"], "no whole number of sequences"),
        (["--model", "nothing.json"], "cannot be read"),
        (["--tokens", "-1"], "give a positive number"),
        (["--sequence", "0"], "give 1 or more tokens"),
        (["--gpu", "tpu"], "gpu='tpu' is unknown"),
        (["--model", "deepseek-v3"], "GB too many"),
        (["--layout", "data=8,tensor=8"], "are 64 GPUs: the cluster has 8"),
        (["--layout", "data=x"], "data='x': give a whole number"),
        (["--layout", "dp=8"], "layout has 'dp'"),
        (["--memory", "-1"], "memory=-1.0 of the cluster"),
        (["--memory", "80GB"], "'80GB' is no number: give one without a unit, as 64, 80e9"),
        (["--memory", "inf"], "'inf' is no number"),
        (["--tokens", "15T"], "or 15e12 (tokens)"),
        (["--tokens", "nan"], "'nan' is no number"),
        (["--gpus", "8.5"], "'8.5' is no whole number: give one, as 64 or 4e6"),
        (["--gpus", "1e12"], "gpus=1000000000000: give at most 10,000,000"),
        (["--batch", "4k"], "'4k' is no number"),
        (["--batch", "0"], "batch_tokens=0: give a whole number of 1 or more"),
        (["--batch", "1e30"], "batch_tokens=1e+30: give at most 1e+12 tokens"),
        (["--sequence", "-1"], "sequence=-1"),
        (["--node", "3"], "gpus=8 are not whole nodes of 3: give a multiple of 3"),
        (["--rows", "0"], "rows=0: give 1 or more"),
        (["--network", "0"], "network_bandwidth=0.0 of the cluster: give a positive number"),
        (["--model", ""], "model='' is unknown: give a config.json"),
        (["--layout", "data=4,data=2"], "layout has data twice"),
        (["--layout", "data=²"], "data='²': give a whole number"),
        (["--layout", ""], "layout has '': give some of data"),
        (["--profile", "nothing.json"], "cannot be read"),
        (["--calibrate", "/nowhere/x.json"], "give one in a folder that there is"),
        (["--tokens", "1e300"], "tokens=1e+300: give at most 1e+18 tokens"),
        (["--network", "1e-300"], "network_bandwidth=1e-300 of the cluster: give 1e-12 to 1e+24"),
        (["--memory", "1e300"], "memory=1e+300 of the cluster: give 1e-12 to 1e+24"),
        (["--mtbf-hours", "9", "--spares", "1e9"], "spares=1000000000: give at most 100000"),
        (["--mtbf-hours", "9", "--repair-hours", "1e300"], "repair_hours=1e+300: give at most"),
        (["--layout", "tensor=8,chunks=3"], "chunks=3 with pipeline=1"),
        (["--layout", "pipeline=8,chunks=2,micro_batch=256"], "and 4 micro-batches"),
        (["--model", "x" * 5000], "model='xxx"),
    ],
)
def test_the_command_refuses(arguments, said, capsys):
    """In the language of its answers; a sentence, of which no part is in the other language."""
    assert said in refusal_of(["plan", "--lang", "en", *arguments], capsys)
    assert prose(refusal_of(["plan", "--lang=ko", *arguments], capsys)) == []
    assert refusal_of(["plan", *arguments, "--lang", "ko"], capsys)


def refusal_of(arguments: list[str], capsys) -> str:
    """The one line that a command says where it refuses; in Korean where it should be."""
    try:
        status = cli.main(arguments)
    except SystemExit as refused:  # by the parser of arguments
        status = refused.code
    printed = capsys.readouterr()
    assert (status, printed.out) == (cli.USAGE_ERROR, "")
    assert printed.err.count("\n") == 1
    assert bool(re.search("[가-힣]", printed.err)) == ("en" not in arguments)
    return printed.err


def prose(text: str) -> list[str]:
    """English words in a row, as in a sentence; names have commas. What Python said may follow."""
    own = re.split("읽을 수 없습니다: |열: ", text)[0]
    return re.findall(r"(?:[a-z]{2,} ){3,}[a-z]{2,}", own)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan", "--gpus"], "--gpus 인자: 값이 하나 필요합니다"),
        (["plan", "--gpus", "많이"], "--gpus 인자: '많이': 숫자가 아닙니다"),
        (["plan", "--gpsu", "8"], "알 수 없는 인자입니다: '--gpsu'"),
        (["plan", "--gpu", "tpu"], "gpu='tpu': 모르는 이름입니다. 다음 중 하나를 주세요: "),
        (["plan", "--model", "deepseek-v3"], "h100 GPU로는 옵티마이저를 호스트에 두고 적어도"),
        (["plan", "--gpu", "H100", "--batch", "12345"], "가장 가까운 값은 12,288, 16,384"),
        (["plan", "--gpus", "16", "--model", "모델"], "model='모델': 모르는 모델입니다"),
        (["plan", "--spares", "1"], "spares만 있고 mtbf_hours가 없습니다"),
        (["plan", "--mtbf-hours", "0"], "mtbf_hours=0.0: 0보다 큰 수"),
        (
            ["plan", "--mtbf-hours", "100", "--interval-minutes", "0.5"],
            "쓰는 데만 60초가 걸립니다. 간격을 1분 이상",
        ),
        (["scale"], "빠진 인자: lesson"),
        (["scale", "01"], "lesson '01': 규모를 볼 수 있는 레슨이 아닙니다"),
        (["scale", "03", "--world", "x"], "--world 인자: 정수가 아닌 값 'x'"),
        (["scale", "03", "--world", "1000000"], "world=1000000: 262144 이하로"),
        (["scale", "04", "--tensor", "5", "--world", "1000"], "n_head=32: tensor=5랭크가"),
        (["scale", "04", "--world", "1001"], "= 125 x 1 x 8 = 1000랭크인데 world=1001"),
        (["explain", "a.json", "--world", "two"], "--world 인자: 정수가 아닌 값 'two'"),
    ],
)
def test_commands_refuse_in_korean(arguments, said, capsys):
    """Without --lang too: the tests' system is Korean."""
    strings.set_language("ko")
    text = refusal_of(arguments, capsys)
    assert said in text and prose(text) == []


def test_a_file_that_cannot_be_written_is_said_in_korean(capsys):
    """What the system says follows, in its own words."""
    place = "/proc/nothing/plan"
    assert cli.main(["plan", "--out", place, "--lang", "ko"]) == cli.FAILED
    said = capsys.readouterr().err
    assert (
        said.startswith("dlcourse plan: 파일을 읽거나 쓰지 못했습니다: ")
        and "/proc/nothing" in said
    )


def test_a_refusal_is_english_for_python():
    """And says the same in Korean, also after a rank has sent it."""
    with pytest.raises(Refusal, match="gpu='tpu' is unknown: give one of") as refused:
        cluster_of("tpu", gpus=8)
    sent = pickle.loads(pickle.dumps(refused.value))
    assert str(sent) == str(refused.value)
    assert sent.said("ko").startswith("gpu='tpu': 모르는 이름입니다")
    with pytest.raises(DoesNotFit, match="the smallest cluster of h100 that would do") as none:
        plan(job_of("deepseek-v3", gpus=8))
    assert type(pickle.loads(pickle.dumps(none.value))) is DoesNotFit
    assert "적어도" in none.value.said("ko") and "smallest" not in none.value.said("ko")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: a config.json is an object"),
        ("{", "is not JSON: line 1, column 2"),
        (None, "is a folder: give the path of a config.json in it"),
        (b"\xff\xfe", "cannot be read"),
        ("null", "holds NoneType"),
        ("[" * 100_000, "is nested too deeply to be read"),
        ('{"hidden_size": 1' + "0" * 5000 + "}", "has a number of thousands of digits"),
        ("{" + " " * 10_000_000 + "}", "has more than 10,000,000 characters"),
        (sized(hidden_size=10**21), "hidden=10**21 of model"),
        (sized(num_hidden_layers=10**21), "layers=10**21 of model"),
        (sized(vocab_size=10**8), "vocab=100000000 of model"),
        (sized(hidden_size=10**6, num_hidden_layers=10**5), "parameters: give at most 1e+15"),
        (sized(hidden_size=1e21), "hidden_size=1e+21: give a whole number"),
        ('{"model_type": "mamba"}', "missing num_hidden_layers, hidden_size, num_attention_heads"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_the_command_refuses_a_bad_config_in_one_sentence(text, said, tmp_path, capsys):
    path = tmp_path / "config.json"
    if text is None:
        path.mkdir()
    else:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in refusal_of(["plan", "--lang", "en", "--model", str(path)], capsys)
    assert prose(refusal_of(["plan", "--lang", "ko", "--model", str(path)], capsys)) == []


def test_the_largest_cluster_has_an_answer(capsys):
    """No larger one is there to compare it with: the answer says so, and is an answer."""
    assert cli.main(["plan", "--gpus", "1e7", "--lang", "ko"]) == 0
    assert "gpus=10000008: 10,000,000개 이하로 주세요" in capsys.readouterr().out


def test_a_million_experts_take_seconds(tmp_path):
    """Divisors of a number in the square root of it."""
    numbers = {"num_local_experts": 10**6, "num_experts_per_tok": 2, "model_type": "mixtral"}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(config_text("mixtral")) | numbers))
    cluster = cluster_of("h100", gpus=64)
    job = Job(shape=read_config(file), cluster=cluster, batch_tokens=2**20)
    started = time.process_time()
    assert plan(job).layouts.expert.max() == 64
    assert time.process_time() - started < 60
    for n in (0, 1, 36, 97, 720):
        assert divisors(n) == [d for d in range(1, n + 1) if n % d == 0]
        assert divisors(n, 9) == [d for d in range(1, min(n, 9) + 1) if n % d == 0]


def test_a_config_comes_from_a_pipe():
    """As of a command that has fetched it."""
    command = [sys.executable, "-m", "dlcourse.cli", "plan", "--model", "-", "--lang", "en"]
    text = "\ufeff" + json.dumps(published_models()["qwen2.5-7b"])  # an editor's mark before it
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith("stdin: 7.62e9 parameters")


def test_a_config_of_the_current_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(config_text("llama"))
    monkeypatch.chdir(tmp_path / "mine")
    assert published_model("config.json").name == "mine"


@pytest.mark.parametrize(
    ("model", "gpu", "gpus"),
    [
        ("llama-3-8b", "h100", 8),
        ("llama-3-70b", "h100", 64),
        ("gpt2-large", "a100", 2),
        ("mixtral-8x7b", "h100", 16),
        ("qwen2.5-7b", "a100", 16),
    ],
)
def test_a_little_more_is_what_a_plan_of_its_own_says(model, gpu, gpus):
    """One more node, the next memory size, one more GPU: as if that job had been asked for."""
    sequence = 1024 if model == "gpt2-large" else 4096
    job = job_of(model, gpus, gpu, batch_tokens=720 * sequence, sequence=sequence)
    answer = plan(job)
    now = answer.numbers(answer.fastest)["tokens_per_second"]
    found = what_if(answer)

    def rate(gpus: int, **own) -> float:
        same = job_of(model, gpus, gpu, batch_tokens=720 * sequence, sequence=sequence, **own)
        for tokens in (720 * sequence, nearest_batch(same)):  # the same batch where it divides
            other = job_of(model, gpus, gpu, batch_tokens=tokens, sequence=sequence, **own)
            try:
                best = plan(other)
            except DoesNotFit:
                raise
            except ValueError:
                continue
            return best.numbers(best.fastest)["tokens_per_second"]
        raise AssertionError

    nodes = -(-gpus // 8) * 8 + 8
    assert found["node"]["gpus"] == nodes
    assert found["node"]["tokens_per_second"] == pytest.approx(rate(nodes))
    assert found["node"]["faster"] == pytest.approx(rate(nodes) / now)
    memory = found["memory"]["memory"]
    assert memory > answer.job.cluster.memory
    node = answer.job.cluster.node
    assert found["memory"]["tokens_per_second"] == pytest.approx(
        rate(gpus, memory=memory, node=node)
    )
    if gpus < 8:
        assert found["gpu"]["tokens_per_second"] == pytest.approx(rate(gpus + 1))
    else:
        assert found["gpu"] == {"gpus": gpus + 1, "whole_nodes": 8}


def test_all_kinds_of_states_are_named():
    job = job_of()
    for states in STATE_BYTES:
        held = one(job_of(states=states), data=64)
        per_parameter = sum(held[name] for name in CATEGORIES) / total_numbers(job.shape)
        assert per_parameter == sum(STATE_BYTES[states])
