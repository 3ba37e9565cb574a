"""What the kernel knows of the notebook in front of it: whether a person is there, which cell."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def front_end_present() -> bool:
    """Whether a person's notebook is in front of this kernel, and so a widget would be seen.

    JupyterLab, Notebook 7 and VS Code send the id of the cell with each request to run it, Colab
    has its own module; papermill, nbclient and nbval do neither. The environment variable
    DLCOURSE_PANEL, "on" or "off", overrides.
    """
    wish = os.environ.get("DLCOURSE_PANEL", "").strip().lower()
    if wish not in ("", "on", "off"):
        raise ValueError(f'DLCOURSE_PANEL={wish!r}: use "on" or "off", or leave it unset.')
    if wish:
        return wish == "on"
    shell = _shell()
    if shell is None:
        return False
    if "google.colab" in sys.modules:
        return True
    try:
        request = shell.kernel.get_parent("shell")
    except Exception:  # a kernel that is not ipykernel may not know its requests
        return False
    return bool((request or {}).get("metadata", {}).get("cellId"))


@contextmanager
def without_a_panel() -> Iterator[None]:
    """Ranks that are made in here come without a panel of their own."""
    before = os.environ.get("DLCOURSE_PANEL")
    os.environ["DLCOURSE_PANEL"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DLCOURSE_PANEL"]
        else:
            os.environ["DLCOURSE_PANEL"] = before


def _shell() -> Any:
    """The notebook's shell, or None outside a kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None


def in_a_kernel() -> bool:
    """Whether this process is a notebook's kernel."""
    return _shell() is not None


def notebook_cell() -> int | None:
    """The number that the notebook shows beside the cell that runs now, or None elsewhere."""
    history = getattr(_shell(), "history_manager", None)
    # Not the shell's own counter: which cell that counts, the last or the next, differs between
    # versions of IPython.
    return None if history is None else len(history.input_hist_parsed) - 1


def cell_id() -> str | None:
    """What the front end calls the cell that runs now, whatever its text; None if it does not."""
    try:
        return _shell().kernel.get_parent("shell")["metadata"]["cellId"]
    except Exception:  # no kernel, or one that does not know its requests
        return None
