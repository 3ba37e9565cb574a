"""``check``, ``hint`` and ``solution``: what a learner calls in the notebook."""

from __future__ import annotations

import _thread
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dlcourse.course import guesses, metrics, progress
from dlcourse.course.exercises.exercise import Exercise
from dlcourse.course.exercises.judge import AnswerError, judge
from dlcourse.course.exercises.packing import pack
from dlcourse.course.exercises.registry import find_exercise
from dlcourse.course.showing import Shown, say, show_code
from dlcourse.ranks.notebook.front_end import front_end_present
from dlcourse.words.strings import language, t
from dlcourse.words.units import rank_ranges

if TYPE_CHECKING:
    from dlcourse.ranks import RankError

GOOD, BAD, OPEN = "✓", "✗", "–"  # a case that is right, wrong, or was not reached


@dataclass(frozen=True)
class CheckResult(Shown):
    """How a check went. ``cases`` tells for each case whether all ranks found it right."""

    id: str
    passed: bool
    text: str
    cases: dict[str, bool | None] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text


def check(id: str, *, pool: Any = None) -> CheckResult:
    """Judge what the learner defined for an exercise; prints what is right and what is wrong.

    Args:
        id: the exercise, such as ``"03.mean"``.
        pool: the ranks that hold the learner's code; the notebook's own by default.

    Raises:
        ValueError: no such exercise, or a pool that is none.
        KeyboardInterrupt: the learner pressed stop.
    """
    exercise = find_exercise(id)
    if pool is not None and not callable(getattr(pool, "run", None)):
        raise ValueError(f"pool={pool!r}: give the Ranks that hold your code, or leave it out")
    packed = fetched(exercise, pool)
    result = judged(exercise, packed)
    for module in packed.get("changed", ()):
        place = t(f"check.place.{exercise.where}")
        text = result.text + "\n" + t("check.changed", module=module, place=place)
        result = replace(result, text=text)
    print(result.text)
    metrics.append("check", id=id, passed=result.passed, cases=result.cases)
    if result.passed and front_end_present() and not progress.keep_passed(id):
        print(t("progress.not_kept", path=guesses.shown_path(progress.FILE)))
    return result


def hint(id: str) -> None:
    """Show the next hint of an exercise; after the last one, all there is to say is said."""
    exercise = find_exercise(id)
    hints = exercise.hints[language()]
    number = min(_hints_given.get(id, 0) + 1, len(hints))
    _hints_given[id] = number
    text = t("hint.one", number=number, total=len(hints), text=hints[number - 1])
    if number == len(hints):
        text += "\n" + t("hint.last", solution=f'solution("{id}")')
    say(text)


def solution(id: str) -> None:
    """Show source that passes the exercise's check, as a cell that can be pasted and run."""
    exercise = find_exercise(id)
    magic = "%%ranks\n" if exercise.where == "ranks" else ""
    show_code(magic + exercise.solution.strip())


_hints_given: dict[str, int] = {}


def kernel_names() -> dict[str, Any]:
    """What the notebook's ordinary cells have defined."""
    return vars(sys.modules["__main__"])


def fetched(exercise: Exercise, pool: Any = None) -> dict[str, Any]:
    """The learner's definitions, pickled by value; or the "problem" that there was."""
    if exercise.where == "kernel":
        return pack(exercise.names, kernel_names())
    from dlcourse.ranks import RankError, default_pool

    try:
        return (pool or default_pool()).run(pack, exercise.names, ranks=[0])[0]
    except ValueError:  # there is no pool, or it is stopped
        return {"problem": "no_ranks"}
    except RankError as error:  # an object that a function refers to fails when it is looked at
        return {"problem": "raised", "error": _for_learner(str(error))}


def judged(exercise: Exercise, packed: dict[str, Any]) -> CheckResult:
    """How the check of what was packed goes; the learner's code runs in fresh ranks alone."""
    if "problem" in packed:
        return _not_run(exercise, _problem_text(exercise, packed))
    return _judge(exercise, packed)


def _judge(exercise: Exercise, packed: dict[str, Any]) -> CheckResult:
    """Run the checker in fresh ranks, and put its findings, or its failure, into words."""
    from dlcourse.ranks import RankError, Ranks
    from dlcourse.ranks.notebook.front_end import without_a_panel

    # The group's own time-out holds for its start as well, which is slow on a busy machine.
    patience = max(30.0, exercise.time_limit)
    with without_a_panel(), _time_limit(exercise.time_limit) as clock:
        try:
            # Checkers make their tensors in the CPU's memory, whatever the learner's ranks have.
            fresh = Ranks(exercise.num_ranks, device="cpu", default=False, timeout=patience)
            with fresh:
                clock.start()
                findings = fresh.run(judge, packed, exercise.names, exercise.checker, language())
                clock.stop()
        except RankError as error:
            return _not_run(exercise, _failure_text(exercise, error))
        except KeyboardInterrupt as stopped:
            if not clock.expired:
                raise
            text = t("check.hang", seconds=exercise.time_limit)
            return _not_run(exercise, f"{text}\n{_for_learner(str(stopped))}".rstrip())
    return _verdict(exercise, findings)


def _verdict(exercise: Exercise, findings: Sequence[Sequence[dict[str, Any]]]) -> CheckResult:
    """Findings of all ranks → one line a case, with what is wrong in which ranks."""
    lang = language()
    cases: dict[str, bool | None] = {}
    lines = []
    for case, words in exercise.cases.items():
        found = [(rank, f) for rank, own in enumerate(findings) for f in own if f["case"] == case]
        cases[case] = all(f["ok"] for _, f in found) if found else None
        mark = {True: GOOD, False: BAD, None: OPEN}[cases[case]]
        wrong: dict[str, list[int]] = {}
        for rank, finding in found:
            if not finding["ok"]:
                ranks = wrong.setdefault(_finding_text(exercise, finding, lang), [])
                ranks += [rank] if rank not in ranks else []
        told = [
            text if len(ranks) == len(findings) else f"{_ranks_text(ranks)}: {text}"
            for text, ranks in wrong.items()
        ]
        lines += [f"{mark} {words[lang]}" + (f": {text}" if text else "") for text in told or [""]]
    unknown = {f["case"] for own in findings for f in own} - set(exercise.cases)
    if unknown:
        raise ValueError(f"the checker of {exercise.id} names unknown cases: {sorted(unknown)}")
    good, total = sum(ok is True for ok in cases.values()), len(cases)
    passed = good == total
    head = t("check.passed" if passed else "check.failed", id=exercise.id, good=good, total=total)
    return CheckResult(exercise.id, passed, "\n".join([*lines, head]), cases)


def _not_run(exercise: Exercise, text: str) -> CheckResult:
    head = t("check.not_run", id=exercise.id)
    return CheckResult(exercise.id, False, f"{text}\n{head}", dict.fromkeys(exercise.cases))


def _problem_text(exercise: Exercise, packed: dict[str, Any]) -> str:
    values = {k: v for k, v in packed.items() if k != "problem"}
    if packed["problem"] == "no_name":
        values["place"] = t(f"check.place.{exercise.where}")
    return t(f"check.{packed['problem']}", **values)


def _failure_text(exercise: Exercise, error: RankError) -> str:
    """What the learner's code raised; or what the checker could not do with what it returned."""
    raised = {r: f for r, f in error.failures.items() if not (f["interrupted"] or f["cut"])}
    said: dict[str, list[int]] = {}
    for rank, failure in sorted(raised.items()):
        if failure["type"] == AnswerError.__name__:
            said.setdefault(failure["message"], []).append(rank)
        elif not failure["transport"]:  # not the end of a connection that another rank's end cut
            said.clear()
            break
    if said:
        return "\n".join(
            f"{BAD} {text}"
            if len(ranks) == exercise.num_ranks
            else f"{BAD} {_ranks_text(ranks)}: {text}"
            for text, ranks in said.items()
        )
    stubs = [f for f in raised.values() if f["type"] == "NotImplementedError" and _is_stub(f)]
    if stubs:
        return t("check.stub")
    text = t("check.raised", error=_for_learner(str(error)))
    return text + "\n" + t("check.aborted") if "SIGABRT" in text else text


def _is_stub(failure: dict[str, Any]) -> bool:
    """Whether a NotImplementedError is the stub's own, not torch's about something it lacks."""
    return not failure["message"] or "raise NotImplementedError" in failure["code"]


def _for_learner(message: str) -> str:
    """The ranks' message without what concerns only the fresh ranks, or our own frames."""
    places = r"(?:dlcourse/course|notebooks/source/[^\"/]+)/exercises"
    ours = rf'  File "(?:[^"]*/)?{places}/[^"]*".*\n(?:    .*\n)*'
    message = re.sub(ours, "", message)
    head = re.escape(t("ranks.last_words", reason="", words=""))
    message = re.sub(rf"{head}(?:\n {{6}}.*)*", "", message)  # Gloo's, before it aborts
    gone = {t("ranks.kept"), t("ranks.kept_wrap"), t("ranks.afresh")}
    return "\n".join(line for line in message.splitlines() if line not in gone)


def _finding_text(exercise: Exercise, finding: dict[str, Any], lang: str) -> str:
    key, values = finding["key"], finding["values"]
    if key in exercise.messages:
        return exercise.messages[key][lang].format(**values)
    return t(f"check.{key}", lang, **values)


def _ranks_text(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return t("check.rank", rank=ranks[0])
    return t("check.ranks", ranks=rank_ranges(ranks))


class _Clock:
    """Interrupts the main thread when the time is up, unless it was stopped before."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._over = False
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        with self._lock:
            self._over = True
        self._timer.cancel()

    def _expire(self) -> None:
        with self._lock:
            if not self._over:
                self.expired = True
                _thread.interrupt_main()


@contextmanager
def _time_limit(seconds: float) -> Iterator[_Clock]:
    clock = _Clock(seconds)
    try:
        yield clock
    finally:
        clock.stop()
