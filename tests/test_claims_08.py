"""The verdict on claim C4, computed anew: how often a layer calls all-to-all, when latency counts.

Calls are counted, and a delay makes a step at least so much longer, on any machine. How much of a
message's time is latency is the machine's: a test beside others cannot time it again.
"""

from __future__ import annotations

import sys
import time

import cloudpickle
import pytest

from dlcourse.course.claims import find_claim
from dlcourse.ranks import Ranks

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

DELAY = 0.05  # seconds, for each all-to-all


def calls_and_delay():
    """In a rank: all-to-alls in forward and in backward, and how long a delayed step took."""
    import torch.distributed as dist

    from dlcourse.corpus import Corpus
    from dlcourse.formulas.sizes import ArchitectureConfig
    from dlcourse.measure.recorder import Recorder
    from dlcourse.models.architectures import ArchitectureGPT
    from dlcourse.parallel.expert_groups import ExpertDataParallel, make_expert_mesh

    delay = 0.0

    def late_all_to_all(*args, **options):
        time.sleep(delay)
        dist.all_to_all_single(*args, **options)

    rank, p = dist.get_rank(), dist.get_world_size()
    sizes = ArchitectureConfig(
        block_size=32, n_layer=1, n_embd=32, feed_forwards=("moe",), expert_hidden=32
    )
    mesh = make_expert_mesh(data=1, expert=p)
    model = ExpertDataParallel(ArchitectureGPT(sizes), mesh, exchange=late_all_to_all)
    batch = Corpus().batch(0, rank=rank, world_size=p, micro_batch=2, block=32)
    counts = []
    with Recorder(rank, p, ledger=False) as recorder:
        loss = model(*batch)
    counts.append(sum(call["op"] == "all_to_all" for call in recorder.record["comm"]))
    with Recorder(rank, p, ledger=False) as recorder:
        loss.backward()
    counts.append(sum(call["op"] == "all_to_all" for call in recorder.record["comm"]))
    delay = DELAY
    start = time.perf_counter()
    model(*batch).backward()
    return counts, time.perf_counter() - start


def test_c4():
    claim = find_claim("C4")
    recorded = {figure.name: figure.value for figure in claim.figures}
    with Ranks(4, device="cpu", default=False) as ranks:
        for (forward, backward), seconds in ranks.run(calls_and_delay):
            assert (forward, backward) == (recorded["forward"], recorded["backward"]) == (2, 2)
            assert seconds >= 4 * DELAY
    assert recorded["growth"] == pytest.approx(4, abs=0.5)
    # Sensitive where messages are small, and not where they are large
    assert recorded["small"] > 40 and recorded["large"] < 20
    assert claim.verdict == "holds_when"
