"""The cost model's arithmetic; that its bytes are real ones is tested in test_collectives.py."""

from __future__ import annotations

import random

import pytest

from dlcourse.formulas.collective_time import CostModel, bus_bandwidth, fit, fit_line
from dlcourse.formulas.traffic import ALGORITHMS, algorithm_bytes, busiest_rank_bytes

MB = 1 << 20
NET = CostModel(alpha=100e-6, beta=1e-9)  # 0.1 ms and 1 GB/s


def rows_of(model, algorithms, sizes=(64, 4096, MB, 16 * MB), ranks=(4,), noise=0.0):
    generator = random.Random(1)
    return [
        {
            "algorithm": name,
            "bytes": n,
            "ranks": p,
            "seconds": model.predict(name, n, p) * (1 + generator.uniform(-noise, noise)),
        }
        for name in algorithms
        for n in sizes
        for p in ranks
    ]


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("ring_all_reduce", 6 * 100e-6 + 1.5 * 8e-3),
        ("ring_reduce_scatter", 3 * 100e-6 + 0.75 * 8e-3),
        ("ring_all_gather", 3 * 100e-6 + 0.75 * 8e-3),
        ("direct_all_reduce", 2 * 100e-6 + 1.5 * 8e-3),
        ("direct_all_to_all", 100e-6 + 0.75 * 8e-3),
        ("tree_broadcast", 2 * 100e-6 + 2 * 8e-3),
        ("tree_all_reduce", 4 * 100e-6 + 4 * 8e-3),
        ("naive_all_reduce", 6 * 100e-6 + 6 * 8e-3),
    ],
)
def test_prediction_for_8_mb_on_4_ranks(name, seconds):
    assert NET.predict(name, 8_000_000, 4) == pytest.approx(seconds)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_world_of_one_costs_nothing(name):
    assert NET.predict(name, MB, 1) == 0
    assert algorithm_bytes(name, MB, 1) == 0
    assert busiest_rank_bytes(name, MB, 1) == 0


def test_all_all_reduces_send_the_same_bytes_together_but_not_from_the_same_rank():
    for name in ("ring", "direct", "tree", "naive"):
        assert algorithm_bytes(f"{name}_all_reduce", 800, 8) == pytest.approx(2 * 7 / 8 * 800)
    assert busiest_rank_bytes("ring_all_reduce", 800, 8) == pytest.approx(2 * 7 / 8 * 800)
    assert busiest_rank_bytes("tree_all_reduce", 800, 8) == 3 * 800
    assert busiest_rank_bytes("naive_all_reduce", 800, 8) == 7 * 800


@pytest.mark.parametrize(
    ("collective", "factor"),
    [
        ("all_reduce", 2 * 7 / 8),
        ("all_gather", 7 / 8),
        ("reduce_scatter", 7 / 8),
        ("all_to_all", 7 / 8),
        ("broadcast", 1),
        ("reduce", 1),
    ],
)
def test_bus_bandwidth_is_that_of_nccl_tests(collective, factor):
    assert bus_bandwidth(collective, 4e9, 8, 2.0) == pytest.approx(2e9 * factor)


@pytest.mark.parametrize("p", [2, 3, 4, 8, 64])
def test_a_perfect_ring_has_the_wires_bandwidth_as_its_bus_bandwidth(p):
    wire = CostModel(alpha=0.0, beta=1e-9)
    for collective in ("all_reduce", "all_gather", "reduce_scatter"):
        seconds = wire.predict(f"ring_{collective}", 1e9, p)
        assert bus_bandwidth(collective, 1e9, p, seconds) == pytest.approx(1e9)


def test_fit_finds_what_made_the_measurements():
    model = fit(rows_of(NET, ALGORITHMS, ranks=(2, 3, 4, 8)))
    assert model.alpha == pytest.approx(NET.alpha)
    assert model.beta == pytest.approx(NET.beta)
    assert model.error < 1e-9


def test_on_one_machine_every_message_counts():
    one = CostModel(alpha=100e-6, beta=1e-9, one_machine=True)
    assert one.predict("ring_all_reduce", 8e6, 4) == pytest.approx(24 * 100e-6 + 6 * 8e-3)
    assert one.predict("direct_all_reduce", 8e6, 4) == one.predict("ring_all_reduce", 8e6, 4)
    assert one.predict("tree_all_reduce", 8e6, 4) == pytest.approx(6 * 100e-6 + 6 * 8e-3)
    assert one.predict("naive_all_reduce", 8e6, 4) == one.predict("tree_all_reduce", 8e6, 4)
    assert one.predict("tree_broadcast", 8e6, 4) == pytest.approx(3 * 100e-6 + 3 * 8e-3)
    assert one.crossover("tree_all_reduce", "ring_all_reduce", 4) is None


def test_the_error_of_the_fit_tells_what_messages_queue_for():
    one = CostModel(alpha=100e-6, beta=1e-9, one_machine=True)
    for truth in (NET, one):
        rows = rows_of(truth, ALGORITHMS, ranks=(2, 4))
        right = fit(rows, one_machine=truth.one_machine)
        assert right.error < 1e-9
        assert right.one_machine == truth.one_machine
        assert right.beta == pytest.approx(truth.beta)
        assert fit(rows, one_machine=not truth.one_machine).error > 0.2


def test_fit_stands_noise_and_reports_it():
    model = fit(rows_of(NET, ALGORITHMS, ranks=(2, 4), noise=0.2))
    assert model.alpha == pytest.approx(NET.alpha, rel=0.1)
    assert model.beta == pytest.approx(NET.beta, rel=0.1)
    assert 0.05 < model.error < 0.15  # the mean of |uniform(-0.2, 0.2)| is 0.1


def test_fit_weighs_errors_relative_to_the_time_measured():
    # 5 ms too much on 24 ms is 20%; an absolute fit would bury the 0.3 ms of small tensors in it.
    rows = rows_of(NET, ["ring_reduce_scatter"], sizes=(64, 256, 1024, 32 * MB))
    rows[-1]["seconds"] += 5e-3
    assert fit(rows).alpha == pytest.approx(NET.alpha, rel=0.01)


def test_fit_never_finds_a_negative_cost():
    quick_start = [
        {"algorithm": "ring_all_gather", "bytes": n, "ranks": 2, "seconds": s}
        for n, s in [(1000, 0.1e-6), (2000, 1e-6), (4000, 3e-6)]
    ]
    assert fit(quick_start).alpha == 0 < fit(quick_start).beta
    quick_bytes = [
        {"algorithm": "ring_all_gather", "bytes": n, "ranks": 2, "seconds": s}
        for n, s in [(1000, 3e-6), (2000, 2e-6), (4000, 1e-6)]
    ]
    assert fit(quick_bytes).beta == 0 < fit(quick_bytes).alpha


def test_fit_leaves_out_what_the_model_does_not_know():
    rows = rows_of(NET, ["ring_all_reduce"])
    foreign = [{"algorithm": "torch_all_reduce", "bytes": 4, "ranks": 4, "seconds": 9.0}]
    alone = [{"algorithm": "ring_all_reduce", "bytes": 4, "ranks": 1, "seconds": 9.0}]
    assert fit(rows + foreign + alone) == fit(rows)


@pytest.mark.parametrize("sizes", [(), (MB,), (MB, MB)])
def test_fit_says_what_is_missing(sizes):
    with pytest.raises(ValueError, match="measure a small and a large tensor"):
        fit(rows_of(NET, ["ring_all_reduce"], sizes=sizes))


@pytest.mark.parametrize("p", [3, 4, 5, 8, 64])
def test_crossover_is_where_tree_and_ring_take_equally_long(p):
    n = NET.crossover("tree_all_reduce", "ring_all_reduce", p)
    if p == 3:  # a tree over 3 ranks takes as many rounds as the ring
        assert n is None
        return
    tree, ring = (NET.predict(f"{a}_all_reduce", n, p) for a in ("tree", "ring"))
    assert tree == pytest.approx(ring)
    assert NET.predict("tree_all_reduce", n / 2, p) < NET.predict("ring_all_reduce", n / 2, p)
    assert NET.predict("tree_all_reduce", n * 2, p) > NET.predict("ring_all_reduce", n * 2, p)


def test_crossover_is_none_where_one_is_always_faster():
    assert NET.crossover("naive_all_reduce", "ring_all_reduce", 8) is None
    assert NET.crossover("ring_all_reduce", "ring_all_reduce", 8) is None
    assert CostModel(1e-4, 0.0).crossover("tree_all_reduce", "ring_all_reduce", 8) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NET.predict("rings", 1, 2), "algorithm is 'rings': known are direct_all_gather"),
        (lambda: NET.predict("ring_all_reduce", 1, 0), "world_size=0 is not allowed"),
        (lambda: NET.crossover("ring_all_reduce", "x", 2), "algorithm is 'x'"),
        (lambda: algorithm_bytes("ring_all_reduce", 1, -1), "world_size=-1 is not"),
        (lambda: bus_bandwidth("all_redduce", 1, 2, 1.0), "collective is 'all_redduce'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("alpha", "beta"), [(2e-3, 5e-10), (0.0, 1e-9), (3e-4, 0.0)])
def test_a_line_finds_alpha_and_beta_again(alpha, beta):
    points = [(n, alpha + beta * n) for n in (64, 4096, 65_536, MB, 16 * MB)]
    found = fit_line(points)
    assert found[:2] == pytest.approx((alpha, beta), rel=1e-6, abs=1e-15)
    assert found[2] == pytest.approx(0, abs=1e-9)


def test_a_large_tensor_does_not_decide_alpha_alone():
    """10% too long at 64 MiB: alpha is off by 10% at most, not by a tenth of 64 MiB's time."""
    points = [(n, 1e-4 + 1e-9 * n) for n in (64, 1024, 16_384)]
    alpha, _, _ = fit_line([*points, (64 * MB, 1.1 * (1e-4 + 1e-9 * 64 * MB))])
    assert alpha == pytest.approx(1e-4, rel=0.1)
    with pytest.raises(ValueError, match="cannot tell alpha from beta"):
        fit_line([(64, 1e-4), (64, 1.1e-4)])
