"""`dlcourse explain` says of a DeepSpeed JSON what DeepSpeed itself does with it."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from dlcourse.explain import KINDS, explain, installed
from dlcourse.explain.keys import Keys, keys_of, recorded
from dlcourse.formulas.batch import derived_batch, fitting_worlds
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
    assert said["version"] in recorded(), "run python -m dlcourse.explain.introspect"
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


def test_versions_differ():
    assert isinstance(keys_of(None, None), Keys)
    with pytest.raises(ValueError, match="is no version"):
        keys_of("new", None)
