"""Lesson 02's figures without ranks: what is fitted, which calls a job needs, what is recorded."""

from __future__ import annotations

import re
import time

import pytest

from dlcourse.bench.backends import claims_on
from dlcourse.course.records import read_record
from dlcourse.figures import backends
from dlcourse.formulas.benchmark_plan import CALLS, COLLECTIVES, sweep_seconds
from dlcourse.formulas.collective_time import CostModel, fastest
from dlcourse.words.strings import set_language

SIZES = (64, 4096, 65_536, 1 << 20, 8 << 20)


def rows_of(name, collective, alpha, beta):
    return [
        {"algorithm": name, "collective": collective, "bytes": n, "seconds": alpha + beta * n}
        for n in SIZES
    ]


def synthetic():
    rows = [r for c in backends.FIVE for r in rows_of(f"torch_{c}", c, 4e-4, 1e-9)]
    rows += rows_of("one_sided_all_to_all", "all_to_all", 1e-4, 5e-10)
    return rows + rows_of("mpi_broadcast", "broadcast", 8e-6, 5e-10)


def test_alpha_and_bandwidth_stand_in_the_row_and_column_of_their_call():
    set_language("en")
    labels = backends.labels_of("gloo", None)
    table = backends.show_costs(synthetic(), labels=labels)
    cells = {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}
    assert set(cells["all-to-all"]) == {"Gloo", "MPI (MPICH)", "one-sided (ours)"}
    assert cells["all-to-all"]["one-sided (ours)"] == "100 µs, 2 GB/s"
    assert cells["all-to-all"]["MPI (MPICH)"] == "–"
    assert cells["broadcast"] == {
        "Gloo": "400 µs, 1 GB/s", "MPI (MPICH)": "8 µs, 2 GB/s", "one-sided (ours)": "–"
    }  # fmt: skip


def test_shared_memory_has_all_five_where_they_are_measured():
    """Of a run, or of a newer record; one with its all-reduce alone has empty cells."""
    set_language("en")
    labels = backends.labels_of("gloo", None)
    five = [row for c in backends.FIVE for row in rows_of(f"shared_{c}", c, 1e-3, 2.5e-10)]
    for rows, filled in ((five, 5), (five[: len(SIZES)], 1)):
        table = backends.show_costs([*synthetic(), *rows], labels=labels)
        column = [row[table.header.index("shared memory (ours)")] for row in table.rows]
        assert column == ["1 ms, 4 GB/s"] * filled + ["–"] * (5 - filled)
    figure = backends.show_times([*synthetic(), *five], "all_to_all", labels=labels)
    assert {labels[name] for name in ("torch", "shared", "one_sided")} <= {
        trace.name for trace in figure.data
    }


def test_a_record_says_which_figures_of_claims_rest_on_it():
    gloo = rows_of("torch_all_to_all", "all_to_all", 4e-4, 4e-10)
    said = claims_on([*gloo, *rows_of("one_sided_all_to_all", "all_to_all", 1e-4, 2e-10)])
    small, large = (401.6384 / (400 + 4e-4 * n) for n in (1 << 17, 1 << 22))
    assert f"C4 small {100 * small:.1f}, C4 large {100 * large:.1f}, C7 one_sided 0.25" in said
    assert claims_on(rows_of("torch_broadcast", "broadcast", 1e-4, 1e-9)) == "no claim rests on it"


def test_the_title_tells_the_ratio_at_both_ends():
    set_language("en")
    labels = backends.labels_of("gloo", None)
    title = backends.show_times(synthetic(), "all_to_all", labels=labels).layout.title.text
    assert "4.00 times the fastest at 64 B" in title.replace("<br>", " ")
    assert "2.05 times at 8 MiB" in title.replace("<br>", " ")


def test_a_record_of_other_sizes_is_left_out_of_the_figure():
    """Three ranks here, four in the record: 72 bytes beside 64."""
    set_language("en")
    record = read_record("backends")
    rows = [row for row in record["rows"] if row["algorithm"].startswith("mpi_")]
    of_three = [{**r, "bytes": -(-r["bytes"] // 12) * 12} for r in synthetic()]
    rows += [r for r in of_three if r["algorithm"].startswith(("torch", "one_sided"))]
    labels = backends.labels_of("gloo", record)
    figure = backends.show_times(rows, "all_to_all", labels=labels)
    names = {trace.name for trace in figure.data}
    assert labels["torch"] in names and labels["mpi"] not in names
    assert labels["mpi"] in backends.show_costs(rows, labels=labels).header


def test_recorded_times_say_that_they_are_recorded():
    record = read_record("backends")
    mpi = backends.labels_of("gloo", record)["mpi"]
    assert record["machine"] in mpi and record["date"] in mpi
    assert "dlcourse.bench.backends" in record["command"]
    for maker in ("mpi", "torch"):
        for collective in backends.FIVE:
            rows = [r for r in record["rows"] if r["algorithm"] == f"{maker}_{collective}"]
            assert [row["bytes"] for row in rows] == list(SIZES)
    assert record["mpi_dtypes"]["float32"] == "right"


@pytest.mark.parametrize("lang", ["ko", "en"])
def test_every_position_of_the_flow_names_its_calls_its_minutes_and_its_commands(lang):
    set_language(lang)
    flow = backends.BenchmarkFlow(synthetic())
    seen = set()
    for strategy, calls in zip(flow.strategies, CALLS.values(), strict=True):
        for network, (gpus, rate) in zip(flow.networks, backends.NETWORKS.values(), strict=True):
            before = time.process_time()
            picture = flow.draw(strategy=strategy, network=network)
            assert time.process_time() - before < 0.1
            commands = re.findall(r"mpirun -n (\d+) ./build/(\w+)_perf", picture.text)
            names = [name.replace("alltoall", "all_to_all") for _, name in commands]
            assert [n.replace("sendrecv", "send_recv") for n in names] == list(calls)
            assert {number for number, _ in commands} == {str(gpus)}
            assert picture.svg.count('fill="#984090"') == 1 + 2 * len(calls)  # boxes that are lit
            model = CostModel(alpha=163.4e-6 / 30, beta=1 / rate)
            minutes = sum(sweep_seconds(name, model, gpus) for name in calls) / 60
            assert (f"{minutes:.1f}" if minutes >= 0.1 else "< 0.1") in picture.text.split("\n")[0]
            seen.add(picture.svg)
    assert len(seen) == len(CALLS) * len(backends.NETWORKS)


def test_the_commands_time_for_this_machine_is_what_its_own_calls_take():
    set_language("en")
    flow = backends.BenchmarkFlow(synthetic())
    said = flow.draw(strategy=flow.strategies[0], network=flow.networks[0]).text
    seconds = 3 * 12 * sum(4e-4 + 1e-9 * n for n in SIZES)  # 3 turns of 2 + 10 calls
    assert f"on this machine at least {1e3 * seconds:.0f} ms" in said
    assert "python -m dlcourse.bench.backends --collectives all_reduce" in said


def test_a_sweep_by_hand():
    """All 31 sizes twice 25 times: rounds and bytes of a ring, or a single message."""
    network, total = CostModel(alpha=1e-5, beta=1e-10), sum(8 << k for k in range(31))
    ring = 50 * (31 * 126 * 1e-5 + 2 * 63 / 64 * total * 1e-10)
    assert sweep_seconds("all_reduce", network, 64) == pytest.approx(ring)
    one = 50 * (31 * 1e-5 + total * 1e-10)
    assert sweep_seconds("send_recv", network, 64) == pytest.approx(one)
    assert {name for calls in CALLS.values() for name in calls} == set(COLLECTIVES)
    with pytest.raises(ValueError, match="collective='gather': give one of all_reduce"):
        sweep_seconds("gather", network, 64)


def test_the_fastest_of_all_turns_is_kept_by_algorithm_and_size():
    row = {"algorithm": "a", "collective": "all_reduce", "ranks": 2, "bytes": 8}
    rows = [{**row, "samples": [3.0, 2.0]}, {**row, "samples": [1.5]}, {**row, "bytes": 16}]
    rows[2]["samples"] = [4.0, 5.0]
    assert [(r["bytes"], r["seconds"]) for r in fastest(rows)] == [(8, 1.5), (16, 4.0)]


def test_an_unknown_record_is_named_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"'nothing' is not in .*there are .*backends, .*communication"
    ):
        read_record("nothing")


def test_published_figures_have_a_link_for_each_letter_of_their_source():
    record = read_record("communication")
    table, sources = backends.show_published(record).parts
    letters = {row[-1] for row in table.rows}
    links = re.findall(r'(\w) <a href="(https:[^"]+)"', sources._repr_html_())
    assert {letter for letter, _ in links} == letters
    assert {link for _, link in links} == {row["source"] for row in record["rows"]}
    set_language("ko")
    said = repr(backends.show_published(record))
    assert "토큰 4,096개" in said and not re.findall("tokens|large|local|latency", said)
