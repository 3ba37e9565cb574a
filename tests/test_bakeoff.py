"""The bake-off: every library that is here trains as one process does, in ranks of its own."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import cloudpickle
import pytest

from dlcourse.bench import bakeoff as bench
from dlcourse.figures.bakeoff import show_bakeoff
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.peers import horovod_wheel
from dlcourse.peers.bakeoff import (
    CONTESTANTS,
    TOLERANCE,
    Contestant,
    contestants,
    data_parallel,
    maintenance,
    recorded_bakeoff,
    run_bakeoff,
)
from dlcourse.peers.bakeoff.contestants import count_lines
from dlcourse.words.strings import set_language

cloudpickle.register_pickle_by_value(sys.modules[__name__])
NUM_RANKS = 2
NOT_IN_AN_INDEX = {"Horovod"}  # built by hand; all others come with the extra "peers"
BYTES = 4 * 873_728  # parameters of the default GPT in float32
STRATEGIES = ("data", "zero", "tensor", "pipeline")


@pytest.fixture(scope="module")
def found():
    """strategy -> name -> row; each strategy is run when a test first asks for it."""
    rows = {}

    def of(strategy):
        if strategy not in rows:
            names = [c.name for c in CONTESTANTS.values() if c.strategy == strategy]
            run = run_bakeoff(names, ranks=NUM_RANKS, turns=2)
            rows[strategy] = {row["name"]: row for row in run}
        return rows[strategy]

    return of


@pytest.mark.timeout(400)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_library_trains_as_one_process(found, strategy):
    rows = found(strategy)
    alone = rows.pop("one process")
    assert alone["state"] == "ran" and alone["gap"] == 0
    assert alone["losses"][0] > alone["losses"][-1] > 0, "it learns"
    assert {name for name, c in CONTESTANTS.items() if c.strategy == strategy} == {*rows}
    for name, row in rows.items():
        if row["state"] == "missing":
            assert "CI" not in os.environ or name in NOT_IN_AN_INDEX, row["why"]
            continue
        assert row["state"] == "ran", f"{name}: {row.get('why')}"
        assert row["losses"] == pytest.approx(alone["losses"], abs=TOLERANCE), name
        assert len(row["losses"]) == 4 and row["gap"] <= TOLERANCE
        assert row["ratio"] > 0 and row["process"] > 0
        assert row["ranks"] == NUM_RANKS and row["version"] == CONTESTANTS[name].version
    show_bakeoff([alone, *rows.values()])


@pytest.mark.timeout(400)
def test_what_is_measured_is_the_strategys_own(found):
    """Each figure by what theory says of the strategy, so that no row can be another's."""
    data, zero = found("data"), found("zero")
    ours = zero["ours: ZeRO-3"]
    for row in (zero["FSDP2"], ours):  # a shard in each rank
        assert row["memory"]["optimizer_state"] == pytest.approx(2 * BYTES / NUM_RANKS, rel=0.02)
    for name in ("DDP", "Accelerate", "ours: data"):
        row = data[name]
        if row["state"] == "missing":
            continue
        assert row["memory"]["optimizer_state"] == pytest.approx(2 * BYTES, rel=0.01)
        if row["sent"] is not None:  # an all-reduce of the gradients, 2 (n - 1) / n of them
            assert row["sent"] == pytest.approx(BYTES, rel=0.01)
    if ours["sent"] is not None:  # 3 (n - 1) / n: two gathers and one reduce-scatter
        assert ours["sent"] == pytest.approx(1.5 * BYTES, rel=0.02)
        assert zero["FSDP2"]["sent"] > ours["sent"], "Gloo's reduce-scatter is an all-reduce"
    wrapped = data["Accelerate"]
    if wrapped["state"] == "ran":
        assert wrapped["calls"] == data["DDP"]["calls"], "Accelerate is DDP"


def crashes(model, job):
    os._exit(3)


def raises(model, job):
    raise ValueError("no such stage")


def hangs(model, job):
    import time

    time.sleep(600)


def wrong(model, job):
    """A step that

    trains nothing."""

    # The loss of one rank's part, and no update
    def step(tokens_BT, targets_BT):
        return model(tokens_BT, targets_BT).detach()

    return step


@pytest.mark.timeout(400)
def test_what_one_breaks_the_others_do_not_feel():
    bad = [Contestant(f.__name__, "data", f, library="") for f in (crashes, raises, wrong)]
    last = replace(CONTESTANTS["ours: data"], name="last")
    told = []
    rows = run_bakeoff([*bad, last], ranks=NUM_RANKS, turns=1, told=told.append)
    assert rows == told
    alone, crashed, raised, apart, fine = rows
    assert [row["state"] for row in rows] == ["ran", "failed", "failed", "ran", "ran"]
    assert "rank" in crashed["why"] and "no such stage" in raised["why"]
    assert fine["gap"] < TOLERANCE < apart["gap"]
    assert apart["lines"] == 4
    set_language("en")
    table = show_bakeoff([alone, raised, fine]).parts[0]
    assert "ended early: " in table.rows[1][1]
    assert table.rows[1][2:7] == [""] * 5 and table.rows[2][2] != ""
    with pytest.raises(AssertionError, match="equal one process"):
        show_bakeoff(rows)


@pytest.mark.timeout(400)
def test_what_hangs_is_ended():
    sleeper = Contestant("hangs", "data", hangs, library="")
    hung = run_bakeoff([sleeper], ranks=NUM_RANKS, turns=1, limit=2)[-1]
    assert hung["state"] == "failed"
    assert hung["why"] == "not over after 2 s, so its ranks were ended"


def test_what_is_not_here_is_said_or_shown_as_recorded(monkeypatch):
    monkeypatch.setattr(contestants, "find_spec", lambda name: None)
    horovod = CONTESTANTS["Horovod"]
    assert contestants.missing(horovod) == "horovod is not installed here"
    assert contestants.missing(CONTESTANTS["DDP"]) == ""
    monkeypatch.undo()
    record = recorded_bakeoff()
    alone = record["rows"][0]
    absent = {key: alone[key] for key in ("ranks", "lines")} | {
        **{"name": "Horovod", "strategy": "data", "stage": 0, "library": "Horovod"},
        **{"version": "", "state": "missing", "why": "horovod is not installed here"},
    }
    set_language("en")
    assert show_bakeoff([alone, absent]).parts[0].rows[1][1] == "Horovod\n(not installed here)"
    set_language("ko")
    shown = show_bakeoff([alone, absent], record).parts[0].rows[1]
    assert shown[1].startswith("Horovod 0.28.1\n(기록: ") and record["date"] in shown[1]
    assert "" not in shown
    with pytest.raises(ValueError, match="rows is empty"):
        show_bakeoff([])


def test_lines_are_those_of_the_code():
    text = Path(data_parallel.__file__).read_text(encoding="utf-8")
    first = text.index("def one_process")
    body = text[first : text.index("\n\n\ndef ddp")]
    written = [line for line in body.splitlines() if line.strip()]
    assert count_lines("dlcourse.peers.bakeoff.data_parallel:one_process") == len(written) - 1
    lines = {name: c.lines() for name, c in CONTESTANTS.items()}
    assert min(lines, key=lines.get) == "one process"
    assert lines["DDP"] == lines["one process"] + 2  # its import and its wrapper
    # A stage of torch's pipeline is the user's to write, our plan of cuts is not
    assert lines["torch pipelining"] > 4 * lines["ours: pipeline"]
    assert lines["DeepSpeed ZeRO-2"] == lines["DeepSpeed ZeRO-3"] > lines["FSDP2"]


def test_the_record_has_every_library_and_each_trained_as_one_process():
    record = recorded_bakeoff()
    rows = {row["name"]: row for row in record["rows"]}
    assert [*rows] == [*CONTESTANTS]
    assert {row["state"] for row in rows.values()} == {"ran"}, "Horovod's wheel too"
    assert record["ranks"] == 4 and record["machine"] and record["date"]
    alone = rows["one process"]["losses"]
    for name, row in rows.items():
        gaps = [abs(a - b) for a, b in zip(row["losses"], alone, strict=True)]
        assert row["gap"] == max(gaps) <= TOLERANCE, name
        assert row["ranks"] == 4 and (row["version"] or not row["library"])
    assert rows["DDP"]["sent"] == pytest.approx(1.5 * BYTES, rel=0.01)
    assert GPTConfig() == GPTConfig(vocab_size=256, n_layer=4, n_head=4, n_embd=128)


def test_each_library_has_a_maintainer_and_a_release_with_their_sources():
    facts = maintenance()
    assert {c.library for c in CONTESTANTS.values()} - {""} == {*facts}
    for fact in facts.values():
        assert fact["source"].startswith("https://") and fact["by_source"].startswith("https://")
        assert fact["by"] and fact["release"] and fact["released"].lstrip("≤ ")[:2] == "20"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"names": ["DDPP"]}, "name 'DDPP' is unknown: give some of one process, DDP"),
        ({"turns": 0}, "turns=0: give a whole number of at least 1"),
        ({"limit": float("inf")}, "limit=inf: give seconds"),
        ({"ranks": 3}, "batch_size=8 cannot be split over ranks=3"),
        ({"ranks": 0}, "ranks=0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(given, said):
    with pytest.raises(ValueError, match=said):
        run_bakeoff(**given)


@pytest.mark.timeout(400)
def test_the_command_measures_shows_and_records(tmp_path, capsys):
    path = tmp_path / "bakeoff.json"
    options = ["--only", "ours: data", "--ranks", "2", "--turns", "1", "--record", str(path)]
    assert bench.main(options) == 0
    assert "ours: data: ran" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert [row["name"] for row in record["rows"]] == ["one process", "ours: data"]
    assert record["ranks"] == 2 and "CPU cores" in record["machine"] and record["versions"]


def test_horovods_build_files_are_raised_to_the_standard_of_torchs_headers(tmp_path):
    for folder in ("horovod/torch", "horovod/mxnet", "third_party/gloo"):
        (tmp_path / folder).mkdir(parents=True)
    old = "set(CMAKE_CXX_STANDARD 14)\nset(CMAKE_CXX_STANDARD_REQUIRED ON)\n"
    files = [tmp_path / "CMakeLists.txt", tmp_path / "horovod/torch/CMakeLists.txt"]
    for path in (*files, tmp_path / "third_party/gloo/CMakeLists.txt"):
        path.write_text(old)
    assert horovod_wheel.raise_cxx_standard(tmp_path) == files
    for path in files:
        assert path.read_text() == old.replace("14", "17")
    assert (tmp_path / "third_party/gloo/CMakeLists.txt").read_text() == old
    with pytest.raises(ValueError, match="asks for C\\+\\+14 nowhere"):
        horovod_wheel.raise_cxx_standard(tmp_path)


def test_a_wheel_that_cannot_be_built_is_said_so_in_a_sentence(tmp_path, monkeypatch, capsys):
    missing = str(tmp_path / "none.tar.gz")
    assert horovod_wheel.main([str(tmp_path), "--source", missing]) == 2
    assert "is no file: give horovod-0.28.1.tar.gz" in capsys.readouterr().err
    archive = tmp_path / "other.tar.gz"
    (tmp_path / "horovod-0.28.1").mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(tmp_path / "horovod-0.28.1", "horovod-0.28.1")
    monkeypatch.setattr(horovod_wheel.shutil, "which", lambda name: None if name == "cmake" else "")
    assert horovod_wheel.main([str(tmp_path), "--source", str(archive)]) == 2
    assert "building needs cmake" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(horovod_wheel, "PROGRAMS", ())
    assert horovod_wheel.main([str(tmp_path), "--source", str(archive)]) == 2
    assert "asks for C++14 nowhere" in capsys.readouterr().err
