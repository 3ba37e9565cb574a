"""`dlcourse explain` says of a DeepSpeed JSON what DeepSpeed itself does with it."""

from __future__ import annotations

import itertools
import json
import os
import random
import sys

import pytest

from dlcourse import cli
from dlcourse.explain import KINDS, explain
from dlcourse.explain import explanation as explaining
from dlcourse.explain.keys import keys_of, recorded
from dlcourse.formulas.batch import derived_batch, fitting_worlds
from dlcourse.formulas.learning_rate import range_test_lr, warmup_cosine_lr, warmup_lr
from dlcourse.peers import deepspeed_installed as installed
from dlcourse.words import strings

needs_deepspeed = pytest.mark.skipif(
    not installed.is_installed() and "CI" not in os.environ, reason="DeepSpeed is not installed"
)


@pytest.fixture(autouse=True)
def english(monkeypatch):
    monkeypatch.setattr(strings, "_chosen", "en")


@pytest.fixture
def without_deepspeed(monkeypatch):
    monkeypatch.setattr(installed, "is_installed", lambda: False)


@pytest.fixture(scope="module")
def deepspeed_config():
    """DeepSpeed's own class, in this process: a configuration and a world size, or its refusal."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    pytest.importorskip("deepspeed")
    return lambda config, world: installed.answer({"config": config, "world_size": world})["error"]


def found(explanation, kind):
    return {finding.path: finding.text for finding in explanation.findings if finding.kind == kind}


@needs_deepspeed
def test_the_recorded_table_is_that_of_the_installed_deepspeed():
    said = installed.answer({"table": True})
    assert said["version"] in recorded(), "run python -m dlcourse.peers.deepspeed_keys"
    assert said["table"] == recorded()[said["version"]]


@needs_deepspeed
def test_the_batch_is_what_deepspeed_derives(deepspeed_config):
    from deepspeed.runtime.config import DeepSpeedConfig

    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    values = (None, 1, 2, 3, 8, 16)
    for given in itertools.product(values, repeat=3):
        config = {n: v for n, v in zip(names, given, strict=True) if v is not None}
        for world in (1, 2, 3):
            try:
                with installed.ranks(world):
                    made = DeepSpeedConfig(dict(config))
            except AssertionError:
                with pytest.raises(ValueError):
                    derived_batch(*given, world_size=world)
                continue
            assert derived_batch(*given, world_size=world) == tuple(
                getattr(made, name) for name in names
            )
            assert world in fitting_worlds(*given)


def test_a_configuration_is_explained_without_deepspeed(without_deepspeed):
    config = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 16,
        "zero_optimization": {"stage": 2, "overlap_com": True, "cpu_offload": True},
        "fp16": {"enabled": True},
        "bf16": {"enabled": True},
        "nebula": {"enabled": True},
        "train_batchsize": 4,
    }
    explanation = explain(config, world_size=2)
    assert explanation.source == "recorded"
    assert explanation.version == list(recorded())[-1]
    assert "not installed" in explanation.notes[0]
    assert {finding.kind for finding in explanation.findings} <= set(KINDS)
    assert "overlap_comm" in found(explanation, "unknown")["zero_optimization.overlap_com"]
    assert "train_batch_size" in found(explanation, "unknown")["train_batchsize"]
    assert "fp16.enabled" in found(explanation, "contradictory")
    assert found(explanation, "deprecated").keys() == {"zero_optimization.cpu_offload", "nebula"}
    assert "16 (micro-batch) x 2 (accumulation) x 2 (ranks)" in str(explanation)
    assert json.loads(json.dumps(explanation.to_dict()))["refused"] is True


def test_a_world_that_does_not_divide_is_refused_and_those_that_would_are_named(without_deepspeed):
    config = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 16}
    text = found(explain(config, world_size=3), "contradictory")["train_batch_size"]
    assert "1, 2, 4" in text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ('{"a": 1,}', "line 1, column"),
        ("{'a': 1}", "double quotes"),
        ('{"a": True}', "Python's True"),
        ('{"a": 1 // x\n}', "no comments"),
        ('{\n  "a": 1\n  "b": 2\n}', "line 3, column 3"),
        ('{"a":', "ends too early"),
        ("[1, 2]", "JSON object"),
        ("3", "JSON object"),
    ],
)
def test_malformed_json_is_refused_with_its_place_and_usual_cause(text, said, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        explain(path)


def test_the_command(without_deepspeed, tmp_path, capsys):
    path = tmp_path / "ds.json"
    path.write_text('{"train_batch_size": 8, "zero_optimization": {"stage": 2}}', encoding="utf-8")
    assert cli.main(["explain", str(path), "--world", "2", "--lang", "ko"]) == 0
    assert "키의 뜻" in capsys.readouterr().out
    assert cli.main(["explain", str(path), "--world", "2", "--lang", "en", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["world_size"] == 2
    assert cli.main(["explain", str(path), "--code", "--lang", "en"]) == 0
    assert "MICRO_BATCH = 8 // world_size // 1" in capsys.readouterr().out
    for wrong in ([str(tmp_path / "none.json")], [str(tmp_path)], [str(path), "--world", "0"]):
        assert cli.main(["explain", *wrong, "--lang", "en"]) == 2
        assert "dlcourse explain: " in capsys.readouterr().err


def test_versions_differ():
    """Defaults and fates are those of the version that is named, from what was recorded of it."""
    config = {"train_batch_size": 8, "fp16": {"enabled": True, "typo": 1}, "nebula": {}}
    new, old = explain(config, version="0.19.8"), explain(config, version="0.16.9")
    assert "clips gradients to a norm of 1.0" in found(new, "implies")["gradient_clipping"]
    assert "gradient_clipping" not in found(old, "implies")
    assert "refuses" in found(new, "unknown")["fp16.typo"]
    assert "ignores" in found(old, "unknown")["fp16.typo"]
    assert "nebula" in found(new, "deprecated") and "nebula" in found(old, "does")
    assert "0.16.9" in explain(config, version="0.17.0").notes[-1]  # the nearest older one
    with pytest.raises(ValueError, match="is no version"):
        keys_of("new", None)


def test_a_key_of_older_versions_is_no_typo():
    config = {"train_batch_size": 8, "aio": {"thread_count": 2}}
    text = found(explain(config, version="0.19.8"), "ignored")["aio.thread_count"]
    assert "0.14.5" in text and "ignores it" in text


@pytest.mark.parametrize(
    ("config", "path", "kind"),
    [
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "fp16.enabled", "contradictory"),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "zero_optimization.offload_param",
            "contradictory",
        ),
        ({"gradient_clipping": "auto"}, "gradient_clipping", "contradictory"),
        (
            {"optimizer": {"type": "Adam", "params": {"max_grad_norm": 1}}},
            "optimizer.params.max_grad_norm",
            "contradictory",
        ),
        (
            {"activation_checkpointing": {"cpu_checkpointing": True}},
            "activation_checkpointing.cpu_checkpointing",
            "contradictory",
        ),
        (
            {"fp16": {"enabled": True, "loss_scale": 4, "hysteresis": 2}},
            "fp16.hysteresis",
            "ignored",
        ),
        (
            {"zero_optimization": {"stage": 1, "stage3_max_live_parameters": 1}},
            "zero_optimization.stage3_max_live_parameters",
            "ignored",
        ),
        ({"zero_optimization": True}, "zero_optimization", "deprecated"),
        ({"gradient_checkpointing": True}, "gradient_checkpointing", "unknown"),
    ],
)
def test_what_is_wrong_is_said_at_its_key(config, path, kind, without_deepspeed):
    explanation = explain({"train_batch_size": 8, **config})
    assert path in found(explanation, kind)
    assert (
        set(found(explanation, kind)) & set(found(explain({"train_batch_size": 8}), kind)) == set()
    )


@pytest.mark.parametrize(
    ("more", "wrapper", "says"),
    [
        ({"offload_optimizer": {"device": "cpu"}}, "OffloadedZeRO3(model)", None),
        ({}, "OffloadedZeRO3(model)", "offload_param alone: the code's optimizer steps where"),
        ({"stage": 2}, "ZeRO2(model)", None),
        ({"fp16": True}, "ZeRO3(model)", "fp16 together with offload_param is not done by hand"),
        ({"offload_param": {"device": "nvme"}}, "OffloadedZeRO3(model)", "not on a disk"),
    ],
)
def test_parameter_offload_by_hand(more, wrapper, says, without_deepspeed, monkeypatch):
    monkeypatch.setattr(strings, "_chosen", "en")
    config = {"train_batch_size": 8, "fp16": {"enabled": more.pop("fp16", False)}}
    config["zero_optimization"] = {"stage": 3, "offload_param": {"device": "cpu"}} | more
    explanation = explain(config)
    assert f"model = {wrapper}  #" in explanation.code
    said = " ".join(line for line in explanation.missing if "disk" in line or "_param" in line)
    assert (said == "") if says is None else (says in said)


PUBLIC = {  # the shapes of configurations that are often passed on, and what their code must name
    "ZeRO-3 of transformers": (
        {
            "train_batch_size": "auto",
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": "auto",
            "steps_per_print": 2000,
            "wall_clock_breakdown": False,
            "bf16": {"enabled": "auto"},
            "fp16": {"enabled": "auto", "loss_scale": 0, "initial_scale_power": 16},
            "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
            "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
                "offload_param": {"device": "cpu", "pin_memory": True},
                "overlap_comm": True,
                "contiguous_gradients": True,
                "sub_group_size": 1e9,
                "reduce_bucket_size": "auto",
                "stage3_prefetch_bucket_size": "auto",
                "stage3_gather_16bit_weights_on_model_save": True,
            },
        },
        "",
    ),
    "NVMe": (
        {
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {
                "stage": 3,
                "offload_optimizer": {"device": "nvme", "nvme_path": "/nvme", "buffer_count": 4},
                "offload_param": {"device": "nvme", "nvme_path": "/nvme"},
            },
            "aio": {"block_size": 262144, "queue_depth": 32, "thread_count": 1},
        },
        "nvme: the code keeps optimizer state",
    ),
    "data efficiency": (
        {
            "train_batch_size": 8,
            "data_efficiency": {
                "enabled": True,
                "data_sampling": {
                    "enabled": True,
                    "curriculum_learning": {
                        "enabled": True,
                        "curriculum_metrics": {"seqlen": {"min_difficulty": 8}},
                    },
                },
                "data_routing": {"enabled": True, "random_ltd": {"enabled": True}},
            },
        },
        "curriculum learning",
    ),
    "observed": (
        {
            "train_batch_size": 8,
            "flops_profiler": {"enabled": True, "profile_step": 1},
            "tensorboard": {"enabled": True, "output_path": "logs/"},
            "wandb": {"enabled": True, "project": "mine"},
            "csv_monitor": {"enabled": True},
            "comms_logger": {"enabled": True},
        },
        "Logging and measuring",
    ),
    "gone": (
        {
            "train_batch_size": 8,
            "amp": {"enabled": True},
            "elasticity": {"enabled": True, "micro_batch_sizes": [2, 4]},
            "compression_training": {"weight_quantization": {"shared_parameters": {}}},
            "curriculum_learning": {"enabled": True},
            "sparse_attention": {"mode": "fixed"},
            "autotuning": {"enabled": True, "arg_mappings": {"a": "--a"}},
        },
        "",
    ),
    "1-bit, pipeline, tensors": (
        {
            "train_batch_size": 8,
            "optimizer": {"type": "OneBitAdam", "params": {"lr": 2e-4, "freeze_step": 400}},
            "pipeline": {"activation_checkpoint_interval": 1, "use_reentrant": False},
            "tensor_parallel": {"autotp_size": 2},
            "scheduler": {"type": "OneCycle", "params": {"cycle_min_lr": 1e-5}},
        },
        "OneCycle",
    ),
}


@pytest.mark.parametrize("name", PUBLIC)
@pytest.mark.parametrize("lang", ["ko", "en"])
def test_public_configurations_are_explained(name, lang, without_deepspeed, monkeypatch):
    monkeypatch.setattr(strings, "_chosen", lang)
    config, left_out = PUBLIC[name]
    for world, version in ((None, None), (2, "0.19.8"), (8, "0.14.5")):
        explanation = explain(json.dumps(config), world_size=world, version=version)
        paths = {finding.path for finding in explanation.findings}
        assert paths >= set(config)
        assert json.dumps(explanation.to_dict(), allow_nan=False)
        assert str(explanation) and explanation._repr_html_()
        compile(explanation.code, "code", "exec")
    if lang == "en":
        assert left_out in " ".join(explain(config).missing) + " "


@needs_deepspeed
def test_schedules_are_those_of_deepspeed():
    import torch

    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.runtime import lr_schedules

    def rates(name, steps, **params):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=3e-3)
        schedule, rates = getattr(lr_schedules, name)(optimizer, **params), []
        for _ in range(steps):  # as the engine does: first its own step, then the schedule's
            rates.append(optimizer.param_groups[0]["lr"])
            schedule.step()
        return rates

    def mine(function, **params):
        return pytest.approx([function(step, **params) for step in range(9)], abs=1e-12)

    for shape in ("log", "linear"):
        warm = {"warmup_num_steps": 4, "warmup_type": shape}
        ours = {"warmup_steps": 4, "shape": shape}
        made = rates("WarmupLR", 9, warmup_max_lr=2e-3, warmup_min_lr=1e-4, **warm)
        assert made == mine(warmup_lr, max_lr=2e-3, min_lr=1e-4, **ours)
        made = rates("WarmupDecayLR", 9, total_num_steps=7, warmup_max_lr=2e-3, **warm)
        assert made == mine(warmup_lr, max_lr=2e-3, total_steps=7, **ours)
        made = rates("WarmupCosineLR", 9, total_num_steps=7, warmup_min_ratio=0.1, **warm)
        assert made == mine(warmup_cosine_lr, lr=3e-3, total_steps=7, min_ratio=0.1, **ours)
    for staircase in (True, False):
        range_test = {"lr_range_test_step_size": 3, "lr_range_test_staircase": staircase}
        assert rates("LRRangeTest", 9, **range_test) == mine(
            range_test_lr, step_size=3, staircase=staircase
        )


def drawn_configuration(rng):
    """Known keys with likely and unlikely values, and keys that nobody knows."""
    table = recorded()["0.19.8"]["keys"]
    odd = [True, False, 0, 2, -1, 1.5, 1e9, "auto", "true", "cpu", "text", "", None, [1], {}]

    def block(path):
        names, made = list(table.get(path, {})), {}
        for name in rng.sample(names, min(len(names), rng.randint(0, 5 if path else 8))):
            entry, here = table[path][name], f"{path}.{name}".lstrip(".")
            if "block" in entry and rng.random() < 0.9:
                made[name] = block(here)
            elif "alias" not in entry:
                likely = "default" in entry and rng.random() < 0.5
                made[name] = entry["default"] if likely else rng.choice(odd)
        if rng.random() < 0.1:
            made["nobody_knows"] = rng.choice(odd)
        return made

    config = block("")
    for name in ("sequence_parallel_size", "data_parallel_size", "gradient_accumulation_steps"):
        config.pop(name, None)
    return config | rng.choice([{"train_batch_size": 8}, {"train_micro_batch_size_per_gpu": 2}])


@needs_deepspeed
def test_drawn_configurations_are_refused_where_deepspeed_refuses(monkeypatch, deepspeed_config):
    """Our rules alone never refuse what DeepSpeed takes; they find most of what it refuses."""
    installed.answer({"table": True})
    monkeypatch.setattr(explaining, "look", lambda *_, **__: (None, None))
    rng, refused, missed = random.Random(12), 0, []
    for _ in range(150):
        config, world = drawn_configuration(rng), rng.choice([1, 2, 4])
        text = json.dumps(config)
        explanation = explain(json.loads(text), world_size=world, version="0.19.8")
        str(explanation), explanation._repr_html_(), json.dumps(explanation.to_dict())
        ours = [  # what only an engine or an optimizer refuses is not in DeepSpeed's answer here
            one.path
            for one in explanation.findings
            if one.refused and not one.path.startswith(("optimizer.params", "scheduler.params"))
        ]
        theirs = deepspeed_config(json.loads(text), world)
        assert not ours or theirs, (ours, text)
        refused += bool(theirs)
        missed += [theirs] if theirs and not ours else []
    assert refused > 50
    assert len(missed) < 0.15 * refused, missed


@needs_deepspeed
def test_what_no_rule_knows_deepspeed_itself_says(deepspeed_config):
    config = {"train_batch_size": 8, "vocabulary_size": "large"}
    explanation = explain(config, world_size=2)
    assert "DeepSpeed 0.19.8 says" in found(explanation, "contradictory")[""]
    assert explanation.source == "installed" and explanation.code == ""


@needs_deepspeed
def test_deepspeed_is_asked_in_a_process_of_its_own(monkeypatch):
    monkeypatch.delitem(sys.modules, "deepspeed", raising=False)
    said = installed._ask({"config": {"train_batch_size": 8, "typo": 1}, "world_size": 3})
    assert said["version"] in recorded() and "AssertionError" in said["error"]  # 8 over 3 ranks


def test_a_deepspeed_that_cannot_be_imported_is_said(monkeypatch):
    def broken(question):
        raise RuntimeError("Traceback ...\nImportError: no torch")

    monkeypatch.setattr(installed, "is_installed", lambda: True)
    monkeypatch.setattr(installed, "_known", [])
    monkeypatch.setattr(installed, "_ask", broken)
    explanation = explain({"train_batch_size": 8}, world_size=2)
    assert explanation.source == "recorded"
    assert "ImportError: no torch" in explanation.notes[0]
