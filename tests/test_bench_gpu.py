"""`dlcourse bench gpu` on the CPU: rows train alike, the largest batch is found, targets bite."""

from __future__ import annotations

import pytest
import torch

from dlcourse.bench import gpu
from dlcourse.models.gpt import GPT, GPTConfig

SIZES = dict(n_layer=2, n_head=2, n_embd=32, vocab_size=64, block_size=16)


def row_on_cpu(name, batch=4, **options):
    torch.manual_seed(0)
    job = dict(device="cpu", batch=batch, block=16, steps=2, backend="aot_eager")
    return gpu.measure(gpu.ROWS[name], SIZES, **(job | options))


@pytest.fixture(scope="module")
def rows():
    compiled = ("float32, compiled", "autocast, checkpoint, compiled")  # the others alike, slowly
    return {n: row_on_cpu(n) for n, row in gpu.ROWS.items() if not row.compiled or n in compiled}


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
    states = GPT(GPTConfig(**SIZES)).num_parameters()
    assert peak["float32"] > 16 * states  # parameters, gradients and two moments, in float32


def test_flops_are_six_for_each_weight_of_a_product():
    from torch.utils.flop_counter import FlopCounterMode

    model, tokens = GPT(GPTConfig(**SIZES)), torch.zeros(1, 16, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(tokens, tokens).backward()
    attention = 12 * 2 * 16 * 32  # torch's counter does not see the CPU's fused kernel
    assert 16 * (gpu.flops_per_token(SIZES, 16) - attention) == counter.get_total_flops()


def test_the_largest_batch_that_fits():
    tried = []

    def fits_up_to_8(batch):
        tried.append(batch)
        if batch > 8:
            raise torch.OutOfMemoryError
        return {"batch": batch}

    assert gpu.largest(fits_up_to_8, first=2, most=64) == {"batch": 8} and tried == [2, 4, 8, 16]
    assert gpu.largest(fits_up_to_8, first=1, most=4) == {"batch": 4}
    assert gpu.largest(fits_up_to_8, first=16, most=64) is None


def test_missed_targets_are_named():
    good = {"ledger_bytes": 96, "cuda_bytes": 100, "mfu": 0.5}
    assert gpu.misses({"a": good, "compiled": good | {"ledger_bytes": None}}) == []
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
