"""`dlcourse bench gpu` on the CPU: rows train alike, the largest batch is found, targets bite."""

from __future__ import annotations

import json

import pytest
import torch

from dlcourse.bench import gpu
from dlcourse.formulas.flops import flops_per_token
from dlcourse.measure import live_bytes
from dlcourse.models.gpt import GPT, GPTConfig

CONFIG = GPTConfig(n_layer=2, n_head=2, n_embd=32, vocab_size=64, block_size=16)


def row_on_cpu(name, batch=4, **options):
    torch.manual_seed(0)
    job = dict(device="cpu", batch=batch, block=16, steps=2, backend="aot_eager")
    return gpu.measure(gpu.ROWS[name], CONFIG, **(job | options))


@pytest.fixture(scope="module")
def rows():
    compiled = ("float32, compiled", "autocast, checkpoint, compiled")  # the others alike, slowly
    return {n: row_on_cpu(n) for n, row in gpu.ROWS.items() if not row.compiled or n in compiled}


def test_rows_are_measured_printed_and_added_to_the_file(tmp_path, capsys):
    """All of it but the device: the CPU trains as the GPU would."""
    left = sum(live_bytes().values())  # by tests before this one, in the same process
    path = tmp_path / "gpu.json"
    job = dict(config=CONFIG, device="cpu", block=16, steps=1, most=4, backend="aot_eager")
    job |= dict(machine="test", peak=1e12)
    gpu.record(["D2: float32", "D2: bfloat16"], path, **job)
    rows = gpu.record(["float32", "float32, compiled"], path, **job)
    assert json.loads(path.read_text())["rows"] == rows
    assert [row["batch"] for row in rows.values()] == [8, 8, 4, 4]
    flops = flops_per_token(CONFIG, block=16)
    assert all(row["mfu"] == row["tokens_per_s"] * flops / 1e12 for row in rows.values())
    printed = capsys.readouterr().out.splitlines()
    half, whole = (rows[f"D2: {name}"]["ledger_bytes"] for name in ("bfloat16", "float32"))
    assert (half - left) / (whole - left) == pytest.approx(0.5, abs=0.02)  # all but the tokens
    assert "of D2: float32: time" in printed[1] and f"ledger {half / whole:.3f}" in printed[1]
    with pytest.raises(ValueError, match="machine='test', this run has 'other'"):
        gpu.record(["float32"], path, **(job | {"machine": "other"}))


def test_every_row_trains_the_same_model(rows):
    for name, row in rows.items():
        # bf16 has 8 bits: losses differ by about 1e-3; another model or batch by far more
        assert row["loss"] == pytest.approx(rows["float32"]["loss"], abs=0.03), name
        assert row["tokens_per_s"] == 4 * 16 / row["seconds"]
        assert (row["ledger_bytes"] is None) == ("compiled" in name) and row["cuda_bytes"] is None


def test_the_ledger_sees_what_each_row_saves(rows):
    peak = {name: row["ledger_bytes"] for name, row in rows.items() if row["ledger_bytes"]}
    assert peak["autocast, checkpoint"] < peak["autocast"]
    assert peak["autocast, accumulate 4"] < peak["autocast"]
    states = GPT(CONFIG).num_parameters()
    assert peak["float32"] > 16 * states  # parameters, gradients and two moments, in float32


def test_flops_are_six_for_each_weight_of_a_product():
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = GPT(CONFIG), torch.zeros(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    attention = 12 * 2 * 16 * 32  # torch's counter does not see the CPU's fused kernel
    assert 16 * (flops_per_token(CONFIG, block=16) - attention) == counter.get_total_flops()


@pytest.mark.parametrize("first", [1, 4])
def test_the_largest_batch_that_fits(first):
    tried = []

    def fits(batch, limit=100):
        tried.append(batch)
        return batch <= limit

    found = gpu.largest(fits, first=first, most=1024)
    assert 100 - max(first, 6) <= found <= 100 and found % first == 0
    assert len(tried) == len(set(tried)) < 13
    assert gpu.largest(fits, first=first, most=16) == 16
    assert gpu.largest(lambda batch: False, first=first, most=16) == 0


def test_what_does_not_fit_is_left_out(monkeypatch, capsys):
    def measure(*args, **job):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu, "measure", measure)
    rows = {}
    gpu.bench(["float32", "D8: float32"], rows, None, config=CONFIG, most=4, steps=1, peak=None)
    assert not rows and capsys.readouterr().out.count("does not fit") == 2


def test_missed_targets_are_named():
    good = {"ledger_bytes": 96, "cuda_bytes": 100, "mfu": 0.5}
    assert gpu.misses({"a": good, "compiled": good | {"ledger_bytes": None}}) == []
    assert gpu.misses({})[0].startswith("no MFU: nothing fits")
    bad = good | {"ledger_bytes": 94, "mfu": 0.3}
    assert [line.split(":")[0] for line in gpu.misses({"a": bad})] == [
        "a",
        "best MFU 30.0%, target at least 45%",
    ]


def test_without_a_gpu_nothing_is_written(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert gpu.main(["--record", str(tmp_path / "gpu.json")]) == 0
    assert "nothing measured" in capsys.readouterr().out and not list(tmp_path.iterdir())
