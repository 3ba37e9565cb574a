"""What an exercise is, and what is refused as incomplete."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcourse.course import catalog

Text = Mapping[str, str]  # {"ko": …, "en": …}

HANG = "hang"  # in place of a case, where ranks wait for each other or for one that has left


@dataclass(frozen=True)
class WrongAnswer:
    """A source that looks right and is not.

    Args:
        name: what is wrong with it, in a word or two: ``"mean_of_means"``.
        caught_by: the cases that must fail, or `HANG`; the suite asserts that they do.
        source: what a learner could have written.
    """

    name: str
    caught_by: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Exercise:
    """One exercise of a lesson.

    Args:
        id: lesson number and a word, ``"03.mean"``; the stub's cell carries it as ``exercise=``.
        names: functions or classes that the learner defines; the checker gets them in this order.
        checker: ``check(fn, rank, world_size) -> list of findings``, run in every rank of a fresh
            pool. Its findings name ``cases``.
        cases: words for each case, in both languages, in the order in which they are shown.
        solution: source that passes; shown by ``solution(id)``.
        wrong: answers that look right and are not; the suite proves that each is caught.
        hints: by language, from a nudge to nearly the answer.
        messages: words for findings of the exercise's own keys, with fields in braces.
        num_ranks: size of the fresh pool.
        time_limit: seconds after which the check gives up.
        where: "ranks" if the stub is a ``%%ranks`` cell, "kernel" if it is an ordinary one.
    """

    id: str
    names: tuple[str, ...]
    checker: Callable[..., Sequence[Mapping[str, Any]]]
    cases: Mapping[str, Text]
    solution: str
    wrong: tuple[WrongAnswer, ...]
    hints: Mapping[str, Sequence[str]]
    messages: Mapping[str, Text] = field(default_factory=dict)
    num_ranks: int = 4
    time_limit: float = 20.0
    where: str = "ranks"

    def __post_init__(self) -> None:
        """Refuse an exercise that a learner in one of the languages could not use."""
        number, _, word = self.id.partition(".")
        if not (number.isdecimal() and len(number) == 2 and word.isidentifier()):
            raise ValueError(f"id={self.id!r}: give two digits, a dot and a word, as 03.mean")
        if self.where not in ("ranks", "kernel"):
            raise ValueError(f"where={self.where!r} of {self.id}: give ranks or kernel")
        texts = {**self.cases, **self.messages, "hints": self.hints}
        for name, text in texts.items():
            if set(text) != set(catalog.LANGUAGES):
                raise ValueError(f"{name!r} of {self.id} must be given in ko and in en")
        if not self.cases or not self.names or not self.wrong:
            raise ValueError(f"{self.id} needs names, cases and at least one wrong answer")
        if len({len(hints) for hints in self.hints.values()}) != 1 or not self.hints["en"]:
            raise ValueError(f"{self.id} needs hints, as many in ko as in en")

    @property
    def lesson(self) -> str:
        """Two digits of the lesson it belongs to."""
        return self.id[:2]
