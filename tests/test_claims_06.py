"""The verdicts on claims B4, B5, B6 and C3, computed anew: what ZeRO divides, and when.

Bytes of model states depend on arithmetic alone, so the recorded figures must come out again; so
must the peak, up to what another version of torch holds for a moment.
"""

from __future__ import annotations

import gc
import sys

import cloudpickle
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.course.claims import find_claim
from dlcourse.formulas.states import state_bytes
from dlcourse.models.gpt import GPT
from dlcourse.parallel import data
from dlcourse.parallel.data import NaiveDataParallel
from dlcourse.parallel.zero import ZeRO1, train
from dlcourse.parallel.zero2 import ZeRO2
from dlcourse.parallel.zero3 import ZeRO3
from dlcourse.peers import zero as peers
from dlcourse.training.mixed_precision.master_adamw import MasterAdamW

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

STATES = ("parameters", "gradients", "optimizer_state")
WRAPPERS = [NaiveDataParallel, ZeRO1, ZeRO2, ZeRO3]
INFINITY = 10**12  # ranks


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4, default=False) as pool:
        yield pool


def recorded(claim_id):
    claim = find_claim(claim_id)
    assert claim.verdict == "holds_when"
    return {figure.name: figure.value for figure in claim.figures}


def keep_after_a_step(stage, mixed):
    """One step; the model stays alive so that the ledger's end shows what a rank keeps."""
    dtype = torch.bfloat16 if mixed else torch.float32
    gpt = GPT()
    model = NaiveDataParallel(gpt.to(dtype)) if stage == 0 else WRAPPERS[stage](gpt, dtype=dtype)
    owned = gpt.parameters() if stage == 0 else model.shards
    optimizer = (MasterAdamW if mixed else torch.optim.AdamW)(owned)
    batch = Corpus(limit=9999).batch(0, rank=dist.get_rank(), world_size=4, micro_batch=1, block=8)
    model(*batch).backward()
    model.sync_gradients()
    optimizer.step()
    dist.kept = model, optimizer


def forget():
    vars(dist).pop("kept", None)
    gc.collect()
    gc.collect()


def bytes_kept(ranks, stage, mixed):
    ranks.run(forget)
    ranks.run(keep_after_a_step, stage, mixed, record=True)
    end = ranks.last.memory.ranks[0]["end"]
    ranks.run(forget)
    return sum(end[name] for name in STATES)


def saving(ranks, stage, mixed):
    return bytes_kept(ranks, 0, mixed) / bytes_kept(ranks, stage, mixed)


def formula(stage, world_size):
    whole, divided = (
        sum(state_bytes(1, precision="master", world_size=world_size, stage=s).values())
        for s in (0, stage)
    )
    return whole / divided


def saves_less_than_its_limit(ranks, stage, claim_id, limit):
    found = recorded(claim_id)
    assert saving(ranks, stage, True) == pytest.approx(found["at_4"], rel=1e-3)
    assert saving(ranks, stage, False) == pytest.approx(found["float32_at_4"], rel=1e-3)
    assert formula(stage, 4) == pytest.approx(found["at_4"], rel=1e-3)
    assert formula(stage, 64) == pytest.approx(found["at_64"], rel=1e-3)
    assert formula(stage, INFINITY) == pytest.approx(found["limit"]) == limit


def test_b4(ranks):
    saves_less_than_its_limit(ranks, 1, "B4", 4)


def test_b5(ranks):
    saves_less_than_its_limit(ranks, 2, "B5", 8)


def train_two_steps(stage):
    gc.collect()
    loop = data.train if stage == 0 else train
    loop(WRAPPERS[stage](GPT()), Corpus(), steps=2, batch_size=8)


def test_b6(ranks):
    found = recorded("B6")
    assert saving(ranks, 3, True) == pytest.approx(found["at_4"], rel=1e-3)
    peaks = []
    for stage in (0, 3):
        ranks.run(train_two_steps, stage, record=True)
        peaks.append(ranks.last.memory.peak_bytes)
    assert peaks[0] / peaks[1] == pytest.approx(found["peak"], rel=0.02)
    assert peaks[0] / peaks[1] < 2 < found["at_4"]


def one_step_of(library):
    """All-gathers that this rank has started when forward is over, and those of backward."""
    from dlcourse.measure import Recorder

    if library == "ZeRO3":
        model = ZeRO3(GPT())
    elif library == "FSDP2":
        model, _ = peers.shard_with_fsdp2(GPT())
    else:
        model = GPT()
        for unit in (*model.blocks, model):
            fully_shard(unit, reshard_after_forward=False)
    batch = Corpus(limit=9999).batch(0, micro_batch=1, block=8)
    counts = []
    for _ in range(2):  # FSDP2 sets itself up in its first step
        with Recorder(dist.get_rank(), 4, ledger=False) as recorder:
            loss = model(*batch)
            begun = recorder.collectives.calls.get("all_gather", 0)
            loss.backward()
        total = sum(event["op"] == "all_gather" for event in recorder.record["comm"])
        counts = [begun, total - begun]
        if library == "ZeRO3":
            model.sync_gradients()
    return counts


def test_c3(ranks):
    found = recorded("C3")
    assert ranks.run(one_step_of, "ZeRO3") == [[found["forward"], found["backward"]]] * 4
    assert ranks.run(one_step_of, "FSDP2") == [[found["forward"], found["fsdp2"]]] * 4
    assert ranks.run(one_step_of, "FSDP2, kept after forward") == [[found["forward"], 0]] * 4
