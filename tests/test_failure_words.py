"""What failed ranks say is in the lesson's language: the headline, each rank's line, the advice."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator

import pytest

from dlcourse.course.exercises import check
from dlcourse.ranks import RankError, Ranks, RanksInterrupted, expect_failure
from dlcourse.words.strings import both, language, set_language, t

HANGUL = re.compile("[가-힣]")

# What ranks do, a word of the Korean headline, and one of the English.
CELLS = {
    "exception": (
        "if rank == 1: raise OSError('boom')",
        "랭크 1에서 OSError: boom",
        "rank 1 raised",
    ),
    "exception everywhere": ("1 / 0", "에서 ZeroDivision", "raised Zero"),
    "others wait": (
        "if rank == 1: raise OSError('boom')\ndist.barrier()",
        "랭크 1에서 OSError: boom",
        "rank 1 raised OSError",
    ),
    "exit": (
        "import sys; sys.exit(3)",
        "에서 SystemExit: 3",
        "raised SystemExit",
    ),
    "never reached": (
        "if rank: dist.all_reduce(torch.ones(2))",
        "랭크 0: all_reduce #1에 이르지 않았습니다",
        "rank 0 never reached all_reduce #1; ranks 1-2 wait in it",
    ),
    "mismatch": (
        "dist.all_reduce(torch.ones(2 + rank))",
        "랭크마다 부른 것이 다릅니다: 랭크 0: all_reduce (float32 [2], 8바이트)",
        "the ranks disagree about collective #1 of their group: rank 0: all_reduce (float32 [2]",
    ),
    "point to point": (
        "dist.recv(torch.ones(2), (rank + 1) % world_size)",
        "답하는 랭크가 없습니다: 랭크 0: recv (float32 [2]) (상대: 랭크 1)에서 기다림",
        "no other rank answers: rank 0 waits in recv (float32 [2]) with rank 1",
    ),
    "out of step": (
        "dist.barrier(async_op=True) if rank == 0 else None",
        "랭크끼리 어긋났습니다",
        "the ranks are out of step",
    ),
    "killed": (
        "import os\nif rank == 1: os.kill(os.getpid(), 9)\ndist.barrier()",
        "랭크 1: SIGKILL로 강제 종료됨",
        "rank 1 was killed by SIGKILL",
    ),
    "left": (
        "import os\nif rank == 2: os._exit(3)\ndist.barrier()",
        "랭크 2: 끝남(종료 코드 3)",
        "rank 2 left with exit code 3",
    ),
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    with Ranks(3, default=False) as pool:
        yield pool


@pytest.fixture(autouse=True)
def korean():
    set_language("ko")


def lines_of(message: str) -> list[str]:
    """The lines that are ours: without Python's traceback, and code and errors of the learner."""
    lines = []
    for line in message.splitlines():
        if line.endswith("트레이스백:"):
            lines.append(line)
            break
        line = re.sub(r"번째 줄: .*", "번째 줄", line)
        lines.append(re.sub(r"(에서|\d  +) ?\w+: [\w ]+", r"\1", line))
    return [line for line in lines if line.strip()]


def assert_korean(message: str) -> None:
    for line in lines_of(message):
        assert HANGUL.search(line), line
        ours = re.sub(r"\w+ ?#?\d* ?\(\w+ \[.*?\]|SIG\w+|Ranks\(.*?\)|#\d+", "", line)
        left = re.findall(r"[A-Za-z]{3,}", ours)
        assert set(left) <= {"all_reduce", "barrier", "recv", "reduce", "all"}, (left, line)


@pytest.mark.parametrize("name", CELLS)
def test_a_failure_is_told_in_the_lessons_language(name, pool):
    code, korean, english = CELLS[name]
    with pytest.raises(RankError) as caught:
        pool.cell(code)
    message = str(caught.value)
    assert message.startswith(korean) or korean in message.splitlines()[0], message
    assert_korean(message)
    assert english in caught.value.english and not HANGUL.search(caught.value.english)
    assert len(message.splitlines()) == len(caught.value.english.splitlines())


def test_the_time_out_of_a_wait():
    with Ranks(2, default=False, timeout=3) as pool, pytest.raises(RankError) as caught:
        pool.cell("import time\nif rank: time.sleep(12)\nelse: dist.barrier()")
    message = str(caught.value)
    assert "랭크 0: 기다리는 시간의 한도인 3초가 지나 포기했습니다" in message
    assert "Ranks(2, timeout=12)" in message and "기다리다 포기함" in message
    assert_korean(message)
    assert caught.value.english.startswith("rank 0 gave up after 3 s")


def test_a_stop(pool):
    pool.cell("1", record=False)  # up again, after a test that has killed one
    stop = threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    stop.start()
    with pytest.raises(RanksInterrupted) as caught:
        pool.cell("import time\ntime.sleep(60) if rank else dist.barrier()")
    stop.join()
    message = str(caught.value)
    assert message.startswith("중단됨") and "계산 중" in message
    assert_korean(message)


def test_ranks_that_start_afresh_and_names_that_are_not_there(pool, capsys):
    with pytest.raises(RankError):
        pool.cell("import os; os._exit(1)")
    pool.cell("x = 1", record=False)
    assert "랭크 0-2: 새로 시작합니다. 변수는 사라졌습니다." in capsys.readouterr().out
    with pytest.raises(KeyError, match="y: 랭크 0-2에 없는 이름입니다"):
        pool["y"]


def test_a_lesson_names_its_failure_in_one_way_for_both_languages(pool, capsys):
    with expect_failure("never reached"):
        pool.cell("if rank: dist.barrier()")
    assert "이르지 않았습니다" in capsys.readouterr().out
    says = "expected a failure that says 'killed'"
    with pytest.raises(AssertionError, match=says), expect_failure("killed"):
        pool.cell("1 / 0")


def test_an_exercise_tells_it_in_korean_without_what_concerns_only_its_own_ranks(pool):
    pool.cell("def accumulate(model, parts):\n    dist.barrier() if rank else None", record=False)
    text = check("09.accumulate", pool=pool).text
    assert HANGUL.search(text) and "never reached" not in text and "finished the cell" not in text
    assert "다음 셀에서" not in text and "변수는 그대로" not in text


def test_both_says_it_in_two_languages_and_leaves_the_language_alone():
    said = both(lambda: t("ranks.interrupted"))
    assert (said, said.english, language()) == ("중단됨", "interrupted", "ko")
    with pytest.raises(ZeroDivisionError):
        both(lambda: 1 / 0 if language() == "en" else "x")
    assert language() == "ko"
