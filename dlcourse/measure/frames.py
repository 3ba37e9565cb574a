"""What a rank shows while it trains: one line of JSON a frame, in a file that the notebook reads.

The file is small and local: the notebook and its ranks are on one machine.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

Frame = dict[str, Any]


def write_frame(path: str, *, step: int, **values: Any) -> None:
    """Add a frame. A step that is not above the last one begins anew: the cell has been run again.

    Args:
        values: what JSON can hold.
    """
    before = read_frames(path)
    goes_on = bool(before) and step > before[-1]["step"]
    with open(path, "a" if goes_on else "w", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def read_frames(path: str) -> list[Frame]:
    """All frames that are whole; none where there is no file yet.

    A full disk, or the end of a rank, leaves half a line, and the next frame stands behind it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    frames = []
    for line in text.splitlines(keepends=True):
        with suppress(ValueError):
            frames += [json.loads(line)] if line.endswith("\n") else []
    return frames
