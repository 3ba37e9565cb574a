"""Judge what was packed: run an exercise's checker on it, in each rank of a fresh pool."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import cloudpickle

from dlcourse.course.exercises.expectations import describe, plain
from dlcourse.course.exercises.packing import is_learners, reach, said
from dlcourse.ranks.worker.interrupt import from_notebook
from dlcourse.words import refusal
from dlcourse.words.strings import t


class AnswerError(Exception):
    """The checker cannot go on with what the learner's code gave it; says with what, and why."""


def judge(
    packed: Mapping[str, Any],
    names: Sequence[str],
    checker: Callable[..., Sequence[Any]],
    lang: str,
) -> list[dict[str, Any]]:
    """Run a checker on what was packed; returns its findings, one list from each rank.

    Raises:
        AnswerError: the checker failed, not the learner's code; says what it was given.
        Exception: what the learner's code raised.
    """
    import torch
    import torch.distributed as dist

    for name, lines in packed["sources"].items():
        linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
    sys.path += [path for path in packed["paths"] if path not in sys.path]
    sys.dont_write_bytecode = True  # see `_forget_compiled`
    importlib.invalidate_caches()
    objects = cloudpickle.loads(packed["payload"])
    # The functions bring rank 0's globals with them; here they must see this rank's.
    # Names that a learner gave a meaning of their own, as a wrapped `dist`, keep it.
    own = {k: v for k, v in vars(sys.modules["__main__"]).items() if not k.startswith("__")}
    each = {k: own[k] for k in ("rank", "world_size", "device") if packed["from_ranks"]}
    for scope in _scopes(objects):
        scope.update({**own, **scope, **each})
    torch.manual_seed(0)
    torch.set_num_threads(1)  # little to compute; two threads wait for each other on a busy machine
    asked = Asked(lang)
    things = [asked.about(name, thing) for name, thing in zip(names, objects, strict=True)]
    try:
        with _errors_held_back():
            findings = checker(*things, dist.get_rank(), dist.get_world_size())
    except KeyboardInterrupt as error:
        if from_notebook(error):
            raise  # the notebook's, at the time limit or after another rank's failure
        raise RuntimeError("KeyboardInterrupt").with_traceback(error.__traceback__) from None
    except BaseException as error:
        own_words = isinstance(error, AnswerError)
        if not own_words and not asked.raised(error, {*packed["sources"]}):
            raise asked.unusable(error) from None
        try:
            str(error)
        except Exception:  # a learner's own exception, which cannot be put into words
            raise RuntimeError(said(error)).with_traceback(error.__traceback__) from None
        raise
    for finding in findings:
        values = finding["values"].items()
        finding["values"] = {key: plain(refusal.said(value, lang)) for key, value in values}
    return [*findings]


@contextmanager
def _errors_held_back() -> Iterator[None]:
    """Let what goes to standard error out at the end, and not at all where the process ends first.

    Gloo ends a rank that gets more bytes than it waits for, with some lines about its own source.
    """
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            kept.seek(0)
            os.write(2, kept.read())


class Asked:
    """The learner's functions as a checker sees them: remembers what was answered last."""

    def __init__(self, lang: str) -> None:
        self.lang = lang
        self.answer: tuple[str, str] | None = None  # the name, and what it returned
        self.error: BaseException | None = None  # the last that left the learner's code

    def about(self, name: str, thing: Callable[..., Any]) -> Callable[..., Any]:
        """`thing`, with a call that does not fit its parameters refused in words."""

        @functools.wraps(thing, updated=())
        def ask(*args: Any, **kwargs: Any) -> Any:
            try:
                got = thing(*args, **kwargs)
            except BaseException as error:
                self.error = error
                here = error.__traceback__
                if isinstance(error, TypeError) and here is not None and here.tb_next is None:
                    words = {"name": name, "number": len(args) + len(kwargs), "error": said(error)}
                    raise AnswerError(t("check.parameters", self.lang, **words)) from None
                raise
            self.answer = name, describe(got)
            return got

        return ask

    def raised(self, error: BaseException, files: set[str]) -> bool:
        """Whether the learner's code raised it: inside a call, or in a hook that it set."""
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        return error is self.error or any(
            file in files or (os.path.isfile(file) and is_learners(file)) for file in frames
        )

    def unusable(self, error: BaseException) -> AnswerError:
        """What to tell where the checker itself failed on an answer."""
        name, answer = self.answer or ("", "None")
        return AnswerError(
            t("check.unusable", self.lang, name=name, answer=answer, error=_line(error))
        )


def _line(error: BaseException) -> str:
    """An exception in one line of a bearable length."""
    text = f"{type(error).__name__}: {said(error)}".strip().partition("\n")[0]
    return text if len(text) <= 300 else text[:299] + "…"


def _scopes(things: Sequence[Any]) -> list[dict[str, Any]]:
    """The global scopes of the notebook's cells that came with the learner's code."""
    scopes = {id(f.__globals__): f.__globals__ for f in reach(things)}
    return [scope for scope in scopes.values() if scope.get("__name__") == "__main__"]
