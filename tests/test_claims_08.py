"""The verdict on claim C4, computed anew, and what else lesson 08 says without measuring it.

C4: how often a layer calls all-to-all, and when latency counts.

Calls are counted, and a delay makes a step at least so much longer, on any machine. How much of a
message's time is latency is the machine's, and a test beside others cannot time it again: it is
computed from the recorded run on a machine that did nothing else.
"""

from __future__ import annotations

import sys
import time

import cloudpickle
import pytest

from dlcourse.course.claims import find_claim
from dlcourse.course.records import read_record
from dlcourse.figures.expert_parallel import latency_shares, tokens_on_the_wire, trip_bytes
from dlcourse.formulas.sizes import MODELS
from dlcourse.formulas.traffic import distinct_ranks, expert_trip_bytes
from dlcourse.ranks import Ranks
from dlcourse.words.strings import set_language

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
            assert seconds >= (forward + backward) * DELAY
            # What it was timed to grow by is what it waits for; 5% are the sleeps' and the clock's
            assert recorded["growth"] == pytest.approx(forward + backward, rel=0.05)
    kept = latency_shares(read_record("backends")["rows"])
    said = "the record is another: write what `dlcourse bench backends --record` has told"
    assert {name: recorded[name] for name in kept} == pytest.approx(kept, abs=0.05), said
    # Sensitive where messages are small, and not where they are large
    assert kept["small"] > 50 > kept["large"]
    assert claim.verdict == "holds_when"


def test_the_record_of_thousands_is_what_the_formulas_say():
    sizes, layers = MODELS["gpt2-large"], MODELS["gpt2-large"].n_layer
    record = read_record("experts_at_scale")
    kept = []
    for row in record["rows"]:
        trip = expert_trip_bytes(512, width=sizes.n_embd, top_k=8, world_size=row["expert"])
        assert row["all_to_all"] == 4 * layers * trip
        kept.append((row["expert"], row["parameters"]))
    dense = [size - experts_of_a_rank(sizes, ranks) for ranks, size in kept]
    assert len(kept) == 4 and len({*dense}) == 1, dense  # all but the experts is in every rank


def experts_of_a_rank(sizes, ranks):
    """Bytes: 2,048 experts a layer, so wide that 8 of them are one MLP."""
    hidden = 4 * sizes.n_embd // 8
    one = 2 * sizes.n_embd * hidden + sizes.n_embd + hidden
    return 4 * sizes.n_layer * 2048 // ranks * one


def test_what_is_asked_has_the_answers_that_the_text_gives():
    assert trip_bytes() == 384 * 1024
    assert distinct_ranks(256, 8, 8) == pytest.approx(5.29, abs=0.01)


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_position_of_the_sliders_can_be_drawn(lang):
    set_language(lang)
    drawn = {
        (ranks, top_k): tokens_on_the_wire(ranks, top_k)
        for ranks in (2, 4, 8, 16, 32, 64, 128, 256)
        for top_k in (1, 2, 4, 8)
    }
    assert len({picture.text for picture in drawn.values()}) == len(drawn)
    assert "4.63" in drawn[8, 8].text  # 7/8 of the ranks that a token visits are others
