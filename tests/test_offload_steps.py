"""Steps of the offload with imposed times, against the formula, and the picture under sliders."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import pytest

from dlcourse import Ranks
from dlcourse.corpus import Corpus
from dlcourse.figures.sharding_offload import (
    BACKWARD,
    BANDWIDTH,
    EXAMPLE,
    FORWARD,
    LATENCY,
    SECONDS,
    SLOWER,
    SMALL,
    divided,
    step_over_link,
)
from dlcourse.formulas.offload import LANES, WAYS, OffloadJob, moved_bytes, offloaded_step
from dlcourse.formulas.parameters import layer_parameters, num_parameters
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.training.sharding_offload.local_host import LocalHost
from dlcourse.training.sharding_offload.optimizer_offload import OptimizerOffload
from dlcourse.training.sharding_offload.parameter_offload import ParameterOffload
from dlcourse.training.sharding_offload.timed_steps import offload_steps, relay_spans
from dlcourse.words.strings import set_language

pytestmark = pytest.mark.usefixtures("nothing_before")

ROUND = OffloadJob(
    blocks=2,
    forward=1,
    backward=2,
    nbytes=3,
    rest=0,
    stream=1,
    update=1,
    slower=10,
    on_host=1,
    latency=0,
    bandwidth=1,
)
SHORT = GPTConfig(n_layer=6, n_head=2, n_embd=24, block_size=32)


def batch(step):
    return Corpus(limit=100_000).batch(step, micro_batch=2, block=32)


@pytest.fixture(scope="module")
def three():
    with Ranks(3, default=False) as pool:
        yield pool.run


@pytest.mark.parametrize(
    ("way", "overlap", "seconds"),
    [
        # forward to 2, backward to 6, then out 3, update 1 and back 3 for each of two blocks
        ("optimizer", False, 6 + 2 * 7),
        # the first leaves at 4, the second when it is through, at 7: out to 10, 11, back to 14
        ("optimizer", True, 14),
        # each block: fetched, computed; in backward sent, too; the last update at the end
        ("parameters", False, 2 * (3 + 1) + 2 * (3 + 2 + 3) + 1),
        # fetched at 3, 6, 9, 12; backward of the last block ends at 14: sent to 17, updated to 18
        ("parameters", True, 18),
        # one block on the device, one on the host: 1, over, 10 and 20 there, back, 2
        ("layers", True, 1 + 1 + 30 + 1 + 2),
    ],
)
def test_a_step_by_hand(way, overlap, seconds):
    step = offloaded_step(ROUND, way, overlap=overlap)
    assert step.seconds == pytest.approx(seconds)
    for spans in step.lanes.values():
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="way='disk' is unknown: give one of optimizer"):
        offloaded_step(ROUND, "disk")


@pytest.mark.parametrize("kind", [OptimizerOffload, ParameterOffload])
def test_offload_moves_what_was_predicted(kind):
    job = OffloadJob()
    assert job.nbytes == 4 * layer_parameters(SMALL)
    assert 8 * job.nbytes + job.rest == 4 * num_parameters(SMALL)
    model = GPT(SMALL)
    offload = kind(model, LocalHost())
    model(*batch(0)).backward()
    offload.step()
    way = "optimizer" if kind is OptimizerOffload else "parameters"
    assert (offload.out_bytes, offload.back_bytes) == moved_bytes(job, way)


def test_a_step_takes_what_was_predicted(three):
    job = OffloadJob()
    for overlap in (False, True):
        found = three(offload_steps, SMALL, batch, job, overlap=overlap)
        fastest = min(end - start for start, _, _, end in found[0])
        want = offloaded_step(job, "optimizer", overlap=overlap).seconds
        assert fastest > 0.98 * want  # real computing, and a busy machine, add to it
        start, _, backward, _ = min(found[0], key=lambda at: at[3] - at[0])
        beside = [begin for begin, _ in found[2] if start < begin < backward]
        assert bool(beside) == overlap and found[1] == []


def test_devices_in_a_row_wait_for_the_slowest(three):
    line = dict(latency=LATENCY, bandwidth=BANDWIDTH, forward=FORWARD, backward=BACKWARD)
    totals = []
    for slower in (1, SLOWER):
        spans = three(relay_spans, SHORT, [2, 2, 2], batch, **line, slower=slower)[0]
        assert spans[0][0][0] == 0
        times = sorted(span[:2] for row in spans for span in row)
        assert all(a[1] <= b[0] for a, b in pairwise(times))
        totals.append(times[-1][1])
        message = LATENCY + 4 * 2 * 32 * 24 / BANDWIDTH
        want = (2 + slower) * (FORWARD + BACKWARD) + 4 * message
        assert totals[-1] > 0.98 * want  # which is twice as long with the slow one


def test_layers_are_divided_as_evenly_as_it_goes():
    assert divided(100, 3) == [33, 33, 34] and divided(7, 7) == [1] * 7


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_position_says_what_the_formula_says(lang):
    set_language(lang)
    for way in WAYS:
        for gigabytes in (4, 450):
            for overlap in ("no", "yes"):
                spent = []
                for _ in range(3):
                    before = time.process_time()
                    picture = step_over_link(way, gigabytes, overlap)
                    spent.append(time.process_time() - before)
                assert min(spent) < 0.1
                job = replace(EXAMPLE, bandwidth=1e9 * gigabytes)
                step = offloaded_step(job, way, overlap=overlap == "yes")
                assert step.seconds < SECONDS  # else the picture would be cut
                title = picture.text.split("\n")[0]
                assert f"{step.seconds:.1f}" in title
                assert f"{step.busy('device') / step.seconds:.0%}" in title
                assert len(picture.text.split("\n")) == 1 + len(LANES)


def test_what_the_lesson_says_of_the_link():
    def seconds(way, gigabytes, *, overlap):
        job = replace(EXAMPLE, bandwidth=1e9 * gigabytes)
        return offloaded_step(job, way, overlap=overlap).seconds

    for way in ("optimizer", "parameters"):
        assert seconds(way, 16, overlap=True) < 1.06 * seconds(way, 450, overlap=True)
        assert seconds(way, 16, overlap=False) > 1.3 * seconds(way, 450, overlap=False)
        assert seconds(way, 4, overlap=True) > 1.4 * seconds(way, 16, overlap=True)
    assert seconds("layers", 4, overlap=True) < 1.01 * seconds("layers", 450, overlap=True)
