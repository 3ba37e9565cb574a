"""The soak: a tenth of a percent of it, whether it sees what goes wrong, and README's figures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dlcourse.bench import soak
from dlcourse.bench.soak import trial as trials
from dlcourse.bench.soak.report import Record, figures
from dlcourse.bench.soak.surroundings import IN_TMP
from dlcourse.bench.soak.trial import MARK, NAMED, SUCCESS, Ending, Scenario, Trial, run_trial

ROOT = Path(__file__).resolve().parents[1]


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]


def test_a_tenth_of_a_percent(tmp_path: Path, capsys):
    status = soak.main(["--share", "0.001", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert status == 0, said.out + said.err
    report = json.loads((tmp_path / "report.json").read_text())
    found = report["scenarios"]
    assert list(found) == [s.name for s in soak.SCENARIOS]
    assert report["not_as_it_should"] == []
    left_out = {name: row["left_out"] for name, row in found.items() if "left_out" in row}
    # A container may not give the right; a missing program is no reason where all are installed.
    no_fault = ("needs the right", IN_TMP)
    avoidable = {n: why for n, why in left_out.items() if not why.startswith(no_fault)}
    if avoidable and os.environ.get("CI"):
        pytest.fail(str(avoidable))
    for name, row in found.items():
        assert name in left_out or row["run"] == max(1, row["of"] // 1000)
    assert found["busy cores"]["endings"] == {SUCCESS: 1}
    if left_out:
        pytest.skip(f"all but {left_out}")


def one(function, *, limit: float = 60, count: int = 2) -> Scenario:
    return Scenario("one", count, "runs", limit, function)


SLEEPER = [sys.executable, "-c", "import time; time.sleep(1000)"]


def test_what_is_left_is_found_and_taken_away(monkeypatch):
    """Also a process whose parent has ended, in a session of its own."""
    monkeypatch.setattr(trials, "ENDED_WITHIN", 0.5)
    started: list[int] = []

    def leaves(trial: Trial) -> Ending:
        call = f"import subprocess; print(subprocess.Popen({SLEEPER}, start_new_session=True).pid)"
        process = trial.start([sys.executable, "-c", call])
        process.wait()
        started.append(int(trial.said()))
        (trial.place / "tmp" / "forgotten").touch()
        return Ending(SUCCESS)

    line = run_trial(one(leaves), 0, 1, False)
    assert line["ending"] == SUCCESS and not trials.fine(line)
    assert len(line["left_running"]) == 1 and "python" in line["left_running"][0]
    assert line["left_files"] == ["forgotten"]
    assert not psutil.pid_exists(started[0]) or (
        psutil.Process(started[0]).status() == psutil.STATUS_ZOMBIE
    )


def test_what_takes_too_long_is_late():
    def waits(trial: Trial) -> Ending:
        process = trial.start(SLEEPER)
        trial.until(lambda: process.poll() is not None, trial.limit)
        raise AssertionError

    line = run_trial(one(waits, limit=0.2), 0, 1, False)
    assert line["ending"] == trials.LATE and line["left_running"] == []
    slow = run_trial(one(lambda trial: Ending(NAMED, seconds=2), limit=1), 0, 1, False)
    assert slow["ending"] == trials.LATE and not trials.fine(slow)


@pytest.mark.parametrize(
    ("error", "said", "good"),
    [
        ("RankError", "rank 1 was killed by SIGKILL", True),
        ("RuntimeError", "the ranks ended while they started. The launcher's last words:", True),
        ("RuntimeError", "something", False),
        ("KeyError", "'ranks'", False),
        ("ConnectionResetError", "", False),
    ],
)
def test_which_errors_are_the_courses_own(error, said, good):
    assert trials.named(error, said) is good


def test_it_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch, capsys):
    done: list[int] = []

    def stopped_once(trial: Trial) -> Ending:
        done.append(trial.number)
        if done == [0, 1]:
            raise KeyboardInterrupt
        return Ending(SUCCESS)

    monkeypatch.setattr(soak, "SCENARIOS", (one(stopped_once, count=4),))
    options = ["--share", "1", "--out", str(tmp_path)]
    assert soak.main(options) == 130
    assert "goes on from here" in capsys.readouterr().err
    with (tmp_path / "trials.jsonl").open("a") as file:
        file.write('{"date": "')  # cut off by a power cut
    assert soak.main(options) == 0
    assert done == [0, 1, 1, 2, 3]
    record = Record(tmp_path, lessons=False)
    assert figures(record, soak.SCENARIOS)["one"]["run"] == 4
    assert soak.main([*options, "--minutes", "0", "--lessons"]) == 0  # another record
    assert done == [0, 1, 1, 2, 3]


def test_what_failed_can_be_done_again(tmp_path: Path, monkeypatch):
    kinds = ["unnamed error", SUCCESS, SUCCESS]
    monkeypatch.setattr(soak, "SCENARIOS", (one(lambda trial: Ending(kinds.pop(0))),))
    options = ["--share", "1", "--out", str(tmp_path)]
    assert soak.main(options) == 1
    assert soak.main(options) == 1 and len(kinds) == 1
    assert soak.main([*options, "--again"]) == 0 and not kinds
    assert [line["trial"] for line in lines(tmp_path)] == [0, 1, 0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["scenarios"]["one"]["endings"] == {SUCCESS: 2}


def test_an_interrupt_ends_all_that_a_trial_has_started(tmp_path: Path):
    command = ["bench", "soak", "--share", "0.5", "--only", "pools", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dlcourse.cli", *command],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )

    def of_it() -> list[psutil.Process]:
        found = []
        for other in psutil.process_iter():
            try:
                mark = other.environ().get(MARK, "")
            except psutil.Error:
                continue
            if mark.startswith(f"{process.pid}.") and other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
        return found

    limit = time.monotonic() + 120
    while len(of_it()) < 3:  # the kernel's part, its agent, ranks
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "interrupted" in said and of_it() == []
    assert not (tmp_path / "trials.jsonl").exists()


ENGLISH = (
    "Run so far on {cores} cores ([data/soak.json](data/soak.json)): {kills} of 300 kills, "
    "{interrupts} of 300 interrupts, {kernel_kills} of 100 kernel kills, {nodes_lost} of 50 lost "
    "machines, {odd} of 78 runs on odd machines, {busy_cores} of 1,000 slow cells on busy cores, "
    "{pools} of 1,000 pools in one kernel, {malformed_frames} of 100,000 connections of strangers. "
    "{as_it_should} of {trials} trials ended in success or, "
    "within the limit, in an error in the course's own words, and left nothing; {left_running} "
    "processes were left running."
)
KOREAN = (
    "지금까지 코어 {cores}개에서 실행한 양은 다음과 같습니다([data/soak.json](data/soak.json)). "
    "강제 종료 300번 중 {kills}번, 셀 중단 300번 중 {interrupts}번, "
    "커널 강제 종료 100번 중 {kernel_kills}번, 컴퓨터 끊김 50번 중 {nodes_lost}번, "
    "별난 환경 78번 중 {odd}번, 바쁜 코어에서 느린 셀 1,000개 중 {busy_cores}개, "
    "한 커널에서 만든 풀 1,000개 중 {pools}개, 낯선 접속 100,000번 중 {malformed_frames}번. "
    "시험 {trials}번 중 {as_it_should}번이 성공하거나 제한 시간 안에 직접 설명하는 오류로 끝났고 "
    "아무것도 남기지 않았습니다. "
    "끝나지 않고 남은 프로세스는 {left_running}개입니다."
)
ODD = ("disk full", "64 MB of /dev/shm", "clock jumps", "host name unknown", "IPv6 only")


@pytest.mark.parametrize(("page", "words"), [("README.md", ENGLISH), ("README.ko.md", KOREAN)])
def test_readme_says_what_was_found(page, words):
    report = json.loads((ROOT / "data" / "soak.json").read_text())
    found = report["scenarios"]
    said = {name.replace(" ", "_"): f"{row['run']:,}" for name, row in found.items()}
    said["odd"] = sum(found[name]["run"] for name in ODD)
    said |= {key: report[key] for key in ("trials", "as_it_should")}
    said["cores"] = report["machine"]["cores"]
    said["left_running"] = sum(row.get("left_running", 0) for row in found.values())
    text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert words.format(**said) in text


def test_the_report_adds_up():
    report = json.loads((ROOT / "data" / "soak.json").read_text())
    assert report["lessons"] is True
    assert report["trials"] - report["as_it_should"] == len(report["not_as_it_should"])
    for scenario in soak.SCENARIOS:
        row = report["scenarios"][scenario.name]
        assert row["of"] == scenario.count and row["run"] <= scenario.count
        assert sum(row.get("endings", {}).values()) == row["run"]


def test_wrong_options_are_refused(tmp_path: Path):
    for options, words in (
        (["--only", "kill"], "only='kill': choose from 'kills'"),
        (["--share", "0"], "share=0.0: give a number above 0, at most 1"),
    ):
        with pytest.raises(ValueError, match=words):
            soak.main([*options, "--out", str(tmp_path)])


def test_trials_of_a_share():
    scenario = Scenario("cells", 1000, "cells", 1, lambda trial: Ending(SUCCESS), each=20)
    assert list(soak.trials(scenario, 0.001)) == [(0, 1)]
    assert list(soak.trials(scenario, 0.05)) == [(0, 20), (1, 20), (2, 10)]
    assert sum(size for _, size in soak.trials(scenario, 1)) == 1000
