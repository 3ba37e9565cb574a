"""A process that a cell forks from a rank: it ends where the cell ends, as a script would."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def end_fork(error: BaseException | None = None, shown: str = "") -> NoReturn:
    """End this process with the status that Python gives a script.

    It must not answer the notebook: it would be a second rank of the same number, and whoever
    waits for its end would wait for ever.

    Args:
        error: what the cell has ended with, if with an error.
        shown: its traceback.
    """
    status = 0
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        status = (error.code or 0) & 0xFF
    elif error is not None:
        status = 1
        with suppress(Exception):
            print(shown.rstrip(), file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)
