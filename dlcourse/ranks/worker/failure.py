"""An exception of a cell, as plain data for the notebook."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import torch

from dlcourse.collectives import window
from dlcourse.ranks.display import in_words, plain, shorten
from dlcourse.ranks.worker import waits
from dlcourse.ranks.worker.call_stack import DISTRIBUTED, collective_call

MESSAGE_LIMIT = 5000  # characters of an exception's message
CHAIN = 5  # errors that an error came from, and those of theirs
_HEADING = "Traceback (most recent call last):\n"
_WAITING = (DISTRIBUTED, waits.__file__, window.__file__)
_TORCH = os.path.dirname(torch.__file__)
_ENGINE = str(Path(__file__).parents[1])  # dlcourse/ranks, whose frames are left out
_ABOVE = str(Path(__file__).parents[3]) + os.sep  # tracebacks name files as the course does


def explained(error: BaseException, *, cut: bool) -> dict[str, Any]:
    """What the notebook needs to explain an exception, however odd: the rank lives on.

    cut: whether the rank's connections were cut before, to end a wait.
    """
    try:
        return _described(error, cut=cut)
    except BaseException as second:
        name = in_words(error, lambda e: type(e).__name__)
        message = f"its traceback cannot be shown ({in_words(second, str, 200)})"
        none = dict.fromkeys(("interrupted", "cut", "transport", "group_broken"), False)
        place = {"file": "", "line": None, "code": "", "collective": None}
        text = f"{name}: {message}"
        return {"type": name, "message": message, "traceback": text, **place, **none}


def _described(error: BaseException, *, cut: bool) -> dict[str, Any]:
    """What the notebook needs to explain an exception, its own frames left out."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_ENGINE)]
    in_cell = [f for f in own if f.filename.startswith("<ranks cell")]
    place = (in_cell or own or frames)[-1]
    shown = traceback.TracebackException.from_exception(error, compact=True)
    _leave_out_frames(shown)
    text = [shorten(x, MESSAGE_LIMIT) for x in shown.format()]
    if text[0] == _HEADING:  # the message has one of its own
        del text[0]
    in_collective = any(f.filename in _WAITING for f in frames)
    return {
        "type": type(error).__name__,
        "message": in_words(error, str, MESSAGE_LIMIT),
        "traceback": plain("".join(text)).replace(_ABOVE, ""),
        "file": place.filename,
        "line": place.lineno,
        "code": place.line or "",
        "interrupted": isinstance(error, KeyboardInterrupt),
        "cut": cut and isinstance(error, RuntimeError),
        "collective": collective_call(error.__traceback__) if in_collective else None,
        "transport": _from_transport(error, in_collective),
        "group_broken": cut or _from_transport(error, in_collective),
    }


def _leave_out_frames(shown: traceback.TracebackException, chain: int = CHAIN) -> None:
    """Keep the learner's frames and the course's: of an error, what it came from, its members."""
    own = [f for f in shown.stack if not f.filename.startswith(_ENGINE)]
    learners = [f for f in own if not f.filename.startswith(_TORCH)]
    shown.stack = traceback.StackSummary.from_list(learners or own)
    for member in shown.exceptions or ():
        _leave_out_frames(member, chain)
    if shown.__context__ is not None:
        # What torch has met and handled within itself tells a learner nothing.
        inside = all(f.filename.startswith(_TORCH) for f in shown.__context__.stack)
        if chain == 0 or inside:
            shown.__context__ = None
        else:
            _leave_out_frames(shown.__context__, chain - 1)
    if shown.__cause__ is not None:
        if chain == 0:
            shown.__cause__ = None
        else:
            _leave_out_frames(shown.__cause__, chain - 1)


def _from_transport(error: BaseException, in_collective: bool) -> bool:
    """Whether an error means that connections are lost, not a wrong argument."""
    signs = ["gloo/", "NCCL error"]  # also out of C++ code that waits unseen, such as DDP's
    if in_collective:
        signs += ["gloo", "NCCL", "Connection", "Timed out", "timed out"]
    return isinstance(error, RuntimeError) and any(
        sign in in_words(error, str, MESSAGE_LIMIT) for sign in signs
    )
