"""What `Run` makes of records: formulas, matching across ranks, clocks, tables. No torch here."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest

from dlcourse.formulas.traffic import wire_bytes
from dlcourse.measure.categories import CATEGORIES
from dlcourse.measure.network_counters import network_bytes, network_bytes_since
from dlcourse.measure.process_memory import CachedPss, pss_bytes
from dlcourse.measure.run import Run
from dlcourse.measure.run.intervals import merge, overlap
from dlcourse.measure.run.timeline import SPAN_KINDS

MS = 1_000_000
START = 5_000 * MS


def call(op: str, seq: int, start: float, end: float | None, **more: Any) -> dict[str, Any]:
    """A collective; times in ms since the cell began."""
    return {
        "op": op,
        "seq": seq,
        "group": "0",
        "group_size": 2,
        "bytes": 1000,
        "dtype": "float32",
        "async": False,
        "start_ns": START + int(start * MS),
        "end_ns": None if end is None else START + int(end * MS),
        "peer": None,
    } | more


def record(rank: int, comm: Any = (), spans: Any = (), steps: Any = (), **more: Any) -> dict:
    empty = dict.fromkeys(CATEGORIES, 0)
    return {
        "rank": rank,
        "world_size": 2,
        "host": "a",
        "wall_s": 0.1,
        "start_ns": START,
        "comm": list(comm),
        "memory": {
            "peak_bytes": 30 + rank,
            "at_peak": empty | {"parameters": 10, "activations": 20 + rank},
            "peaks": empty | {"parameters": 10, "activations": 25},
            "end": empty | {"parameters": 10},
            "series": [[START, 10, 0, 0, 0, 0, 0], [START + 2 * MS, 10, 0, 0, 20, 0, 0]],
        },
        "spans": [[START + int(a * MS), START + int(b * MS), kind, ""] for a, b, kind in spans],
        "steps": [
            {
                "start_ns": START + int(a * MS),
                "end_ns": START + int(b * MS),
                "tokens": tokens,
                "loss": loss,
            }
            for a, b, tokens, loss in steps
        ],
        "flops": 500,
        "pss_bytes": 77,
        "wire": None,
    } | more


def least_bytes(op: str, size: int, n: int) -> float:
    """What a rank sends on average: every byte of a rank that must be elsewhere, counted once.

    Rank r has the chunks before the call that `has` says; afterwards it must have those of
    `needs`. A chunk is (whose contribution, which part of the buffer); sums travel as one.
    """
    ranks, parts = range(n), range(n)
    whole = {(0, part) for part in parts}  # of the first rank, or the sum of all
    if op == "all_reduce":  # a sum for each part in one place, and from there everywhere
        return least_bytes("reduce_scatter", size, n) + least_bytes("all_gather", size, n)
    if op == "reduce_scatter":  # the n - 1 partial sums of a part each move once
        moved = sum(1 for part in parts for rank in ranks if rank != part)
    elif op == "reduce":
        moved = sum(1 for rank in ranks if rank != 0 for _ in parts)
    else:
        has = {
            "all_gather": [{(r, r)} for r in ranks],
            "all_to_all": [{(r, part) for part in parts} for r in ranks],
            "broadcast": [whole, *({} for _ in range(n - 1))],
            "gather": [{(r, r)} for r in ranks],
            "scatter": [whole, *({} for _ in range(n - 1))],
        }[op]
        everything = {(r, r) for r in ranks}
        needs = {
            "all_gather": [everything] * n,
            "all_to_all": [{(other, r) for other in ranks} for r in ranks],
            "broadcast": [whole] * n,
            "gather": [everything, *({} for _ in range(n - 1))],
            "scatter": [{(0, r)} for r in ranks],
        }[op]
        moved = sum(len(set(need) - set(own)) for need, own in zip(needs, has, strict=True))
    return moved * (size / n) / n


OPS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "gather",
       "scatter")  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_wire_bytes_are_those_that_must_move(n: int) -> None:
    for op in OPS:
        assert wire_bytes(op, 4800, n) == pytest.approx(least_bytes(op, 4800, n)), op
    assert wire_bytes("send", 4800, 2) == 4800
    assert wire_bytes("recv", 4800, 2) == wire_bytes("barrier", 4800, n) == 0


def test_intervals_against_counting() -> None:
    generator = random.Random(0)
    for _ in range(200):
        a, b = (
            [(s, s + generator.randint(0, 9)) for s in generator.choices(range(60), k=5)]
            for _ in range(2)
        )
        covered = [{t for s, e in x for t in range(s, e)} for x in (a, b)]
        merged = [merge(x) for x in (a, b)]
        assert [sum(e - s for s, e in m) for m in merged] == [len(c) for c in covered]
        assert all(x[1] < y[0] for m in merged for x, y in pairwise(m))
        assert overlap(*merged) == len(covered[0] & covered[1])


def test_waiting_is_until_the_last_rank_starts_the_same_call() -> None:
    run = Run(
        [
            record(1, [call("all_reduce", 1, 40, 50), call("all_reduce", 2, 60, 70)]),
            record(0, [call("all_reduce", 1, 10, 51), call("all_reduce", 2, 61, 70)]),
        ]
    )
    zero, one = run.timeline.ranks
    assert (zero["rank"], one["rank"]) == (0, 1)
    assert zero["totals"]["waiting"] == pytest.approx(0.030)
    assert zero["totals"]["communication"] == pytest.approx(0.011 + 0.009)
    assert one["totals"]["waiting"] == pytest.approx(0.001)
    assert [s[3] for s in zero["spans"]] == ["all_reduce #1", "all_reduce #1", "all_reduce #2"]
    assert zero["hidden_fraction"] == 0


def test_messages_match_by_sender_and_receiver() -> None:
    run = Run(
        [
            record(0, [call("recv", 1, 0, 50, peer=1), call("send", 1, 60, 61, peer=1)]),
            record(1, [call("send", 1, 30, 50, peer=0), call("recv", 1, 52, 61, peer=0)]),
        ]
    )
    assert [r["totals"]["waiting"] for r in run.timeline.ranks] == pytest.approx([0.030, 0.008])
    assert [r["wire_bytes"] for r in run.comm.ranks] == [1000, 1000]


def test_hidden_fraction_counts_communication_that_own_work_covers() -> None:
    spans = [(0, 10, "forward"), (10, 30, "backward"), (45, 50, "optimizer")]
    both = [call("all_reduce", 1, 20, 40), call("all_reduce", 2, 35, 50)]
    run = Run([record(0, both, spans), record(1, both, [])])
    zero, one = run.timeline.ranks
    assert zero["totals"]["communication"] == pytest.approx(0.030)  # a union, not a sum
    assert zero["hidden_fraction"] == pytest.approx(15 / 30)
    assert one["hidden_fraction"] == 0
    assert run.timeline.hidden_fraction == pytest.approx(0.25)
    assert Run([record(0, [], spans)]).timeline.hidden_fraction is None


def test_clocks_of_other_machines_are_aligned_by_collectives() -> None:
    ahead = 7_000 * MS
    calls = [call("all_reduce", i, 10 * i, 10 * i + 5) for i in range(1, 6)]
    elsewhere = [
        e | {"start_ns": e["start_ns"] + ahead, "end_ns": e["end_ns"] + ahead} for e in calls
    ]
    other = record(1, elsewhere, host="b", start_ns=START + ahead)
    other["memory"]["series"][0][0] += ahead
    run = Run([record(0, calls), other])
    assert max(abs(s[0]) for r in run.timeline.ranks for s in r["spans"]) < 0.1
    assert all(r["totals"]["waiting"] == 0 for r in run.timeline.ranks)
    assert run.memory.ranks[1]["series"][0][0] == pytest.approx(0)


def test_throughput_is_the_median_without_the_first_step() -> None:
    slow = [(0, 50, 64, 3.0), (50, 58, 64, 2.0), (58, 70, 64, 1.5), (70, 100, 64, 1.0)]
    fast = [(a, b - 1, 64, loss) for a, b, _, loss in slow]
    run = Run([record(0, steps=slow), record(1, steps=fast[:3])])
    assert run.throughput.steps == 3
    assert run.throughput.step_s == pytest.approx(0.010)
    assert run.throughput.tokens_per_s == pytest.approx((2 * 64 / 0.008 + 2 * 64 / 0.012) / 2)
    assert run.throughput.flops == 1000
    assert run.throughput.ranks[0]["loss"] == [3.0, 2.0, 1.5, 1.0]
    none = Run([record(0)]).throughput
    assert none.step_s is None and none.tokens_per_s is None and none.steps == 0


def test_wire_counters_belong_to_a_machine() -> None:
    two = [
        record(0, wire={"sent": 100, "received": 90}),
        record(1, wire={"sent": 104, "received": 90}),
    ]
    assert Run(two).comm.wire == {"sent": 104, "received": 90, "sent_per_rank": 52}
    other = record(1, host="b", wire={"sent": 50, "received": 60})
    assert Run([two[0], other]).comm.wire == {"sent": 150, "received": 150, "sent_per_rank": 75}
    assert Run([record(0)]).comm.wire is None


def test_exact_bytes_of_an_uneven_all_to_all_go_before_theory() -> None:
    run = Run([record(0, [call("all_to_all", 1, 0, 1, sent_bytes=123)])])
    assert run.comm.ops[0]["wire_bytes"] == 123


def test_plain_data() -> None:
    comm = [call("all_reduce", 1, 10, 20), call("broadcast", 2, 30, None)]
    run = Run([record(r, comm, [(0, 5, "forward")], [(0, 50, 8, 1.0)]) for r in (0, 1)])
    parts = {name: getattr(run, name).data() for name in PARTS}
    assert json.loads(json.dumps(parts)) == parts, "JSON gives back what went in"
    assert parts["memory"]["categories"] == list(CATEGORIES)
    assert list(parts["timeline"]["ranks"][0]["totals"]) == list(SPAN_KINDS)
    assert [c["end_s"] for c in parts["comm"]["calls"]][-1] is None
    assert run.memory.at_peak("activations") == [20, 21] and run.memory.peak_bytes == 31
    assert run.memory.peaks("activations") == [25, 25]
    with pytest.raises(ValueError, match="parameters"):
        run.memory.at_peak("weights")
    assert "ranks=2" in repr(run) and "collectives=2" in repr(run)


PARTS = ("comm", "memory", "timeline", "throughput")


def test_no_records() -> None:
    run = Run([])
    assert run.memory.peak_bytes == 0 and run.timeline.hidden_fraction is None
    for name in PARTS:
        assert getattr(run, name).data()["ranks"] == []


FIGURES = """
import json, sys
from dlcourse.measure.run import Run
run = Run(json.load(sys.stdin))
assert "dlcourse.figures" not in sys.modules and "plotly" not in sys.modules
for figure in (run.comm.figure("en"), run.memory.figure("ko"), run.memory.over_time("en"),
               run.timeline.figure("ko"), run.throughput.figure("en")):
    assert figure.to_plotly_json()["data"] and figure.layout.title.text
assert "torch" not in sys.modules
"""


def test_figures_come_with_the_first_that_is_asked_for_and_without_torch() -> None:
    records = [
        record(r, [call("all_reduce", 1, 10, 20)], [(0, 5, "forward")], [(0, 50, 8, 1.0)])
        for r in (0, 1)
    ]
    done = subprocess.run(
        [sys.executable, "-c", FIGURES], input=json.dumps(records), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counters of Linux")
def test_virtual_interfaces_are_not_counted_twice(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("psutil.PROCFS_PATH", str(tmp_path))
    assert network_bytes() is None and network_bytes_since((0, 0)) is None
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "dev").write_text(
        "Inter-|   Receive\n face |bytes\n"
        "    lo: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n"
        "  eth0: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n"
        "veth12: 1000 1 0 0 0 0 0 0 2000 1 0 0 0 0 0 0\n"
    )
    assert network_bytes() == (220, 110)
    assert network_bytes_since((200, 10)) == {"sent": 20, "received": 100}
    assert network_bytes_since(None) is None


def test_wire_counters_see_the_loopback() -> None:
    import socket

    before = network_bytes()
    if before is None:
        pytest.skip("no counters on this system")
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    peer, _ = server.accept()
    with server, client, peer:
        client.sendall(b"x" * 60_000)
        received = 0
        while received < 60_000:
            received += len(peer.recv(60_000))
    assert network_bytes_since(before)["sent"] >= 60_000


def test_memory_of_the_process() -> None:
    pss = CachedPss()
    before = pss.read()
    assert before > 5 << 20
    ballast = bytearray(200 << 20)
    assert pss_bytes() - before > 190 << 20
    pss._next = float("inf")  # not due yet, however slow this machine is
    assert pss.read() == before
    pss._next = 0.0
    assert pss.read() - before > 190 << 20
    del ballast
