"""When buckets travel: the formula of lesson 03, by hand, and what its slider draws of it."""

from __future__ import annotations

import re

import pytest

from dlcourse.figures.data_parallel import overlap_of_buckets, show_cluster
from dlcourse.formulas.overlap import Job, best_bucket, buckets, hidden_share, overlapped_seconds

JOB = Job()
RING = 6 * 0.002  # latencies of a ring of four, and its bytes below
LAYER = 1.5 * 4 * 56**2 / 1e6


def test_one_bucket_hides_nothing():
    """It is full when backward is over, so hooks win nothing."""
    assert buckets(JOB, 8, 4) == [pytest.approx((0.16, 0.16 + RING + 8 * LAYER))]
    assert hidden_share(JOB, 8, 4) == 0
    assert overlapped_seconds(JOB, 8, 4) == pytest.approx(
        overlapped_seconds(JOB, 8, 4, behind=False)
    )


def test_a_bucket_waits_for_the_one_before_it():
    """Two layers need 50 ms of the card and 40 ms of backward: the queue grows from there."""
    seconds = RING + 2 * LAYER
    starts = [0.04 + i * seconds for i in range(4)]
    assert [start for start, _ in buckets(JOB, 2, 4)] == pytest.approx(starts)
    assert overlapped_seconds(JOB, 2, 4) == pytest.approx(0.08 + 0.04 + 4 * seconds)


def test_the_best_bucket_is_neither_the_smallest_nor_all():
    assert best_bucket(JOB, 4) == 2
    assert best_bucket(Job(latency=0), 4) == 1 and best_bucket(Job(latency=0.1), 4) == 8


def test_dividing_one_batch_wins_nothing_where_messages_take_as_long():
    quarter = overlapped_seconds(JOB.shared(1 / 4), 2, 4)
    assert JOB.alone() / quarter == pytest.approx(0.24 / 0.2284, rel=0.01)
    assert 4 * JOB.alone() / overlapped_seconds(JOB, 2, 4) == pytest.approx(3.0, abs=0.1)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_the_slider_says_what_the_formula_says(size):
    picture = overlap_of_buckets(size, 2)
    said = [int(number) for number in re.findall(r"\d+", picture.text.splitlines()[0])]
    assert round(1000 * overlapped_seconds(JOB, size, 4)) in said
    assert round(100 * hidden_share(JOB, size, 4)) in said


def test_eight_rings_use_eight_cards():
    """One ring leaves seven of a node's cards idle."""
    node, one, eight = (float(str(row[1]).split()[0]) for row in show_cluster().rows)
    assert one / eight == pytest.approx(8, rel=0.01) and node < eight
