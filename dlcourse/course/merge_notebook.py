"""A merge driver of git for notebooks: what a learner has written is never lost, nor torn.

git merges notebooks line by line, and nbgitpuller tells it to prefer the learner's lines. Outputs
of both sides can then become a file that is no notebook. So here: git's merge, if it is a notebook
in which every cell that the learner has changed is as the learner has it; else the learner's file.

    git config merge.dlcourse.driver 'python -P -m dlcourse.course.merge_notebook %O %A %B'

Source: gitattributes(5), "Defining a custom merge driver".
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

NAME = "dlcourse"
ATTRIBUTES = f"*.ipynb merge={NAME}\n"


def settings(attributes: Path) -> dict[str, str]:
    """Variables by which git takes this driver; ``attributes`` is a file with `ATTRIBUTES`.

    Source: git-config(1), GIT_CONFIG_COUNT, which git has since 2.31.
    """
    driver = shlex.join([sys.executable, "-P", "-m", __name__]) + " %O %A %B"
    pairs = {"core.attributesFile": str(attributes), f"merge.{NAME}.driver": driver}
    given = {"GIT_CONFIG_COUNT": str(len(pairs))}
    for number, (key, value) in enumerate(pairs.items()):
        given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return given


def merge(base: Path, mine: Path, theirs: Path) -> bool:
    """Merge into ``mine``; returns whether theirs came in, False where mine is as it was."""
    before = mine.read_bytes()
    command = ["git", "merge-file", "--quiet", "--ours", str(mine), str(base), str(theirs)]
    done = subprocess.run(command, capture_output=True)
    if done.returncode == 0 and is_whole(_read(base.read_bytes()), _read(before), mine):
        return True
    mine.write_bytes(before)
    return False


def is_whole(base: Any, mine: Any, merged: Path) -> bool:
    """Whether a file is a notebook, with each cell that ``mine`` has and ``base`` has not."""
    import nbformat

    try:
        notebook = _read(merged.read_bytes())
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # two cells with one id
            nbformat.validate(notebook)
    except Exception:  # whatever is wrong with it
        return False
    return _cells(mine) - _cells(base) <= _cells(notebook)


def _read(content: bytes) -> Any:
    """A notebook; None where there was none, as for a file that both have added."""
    return json.loads(content) if content.strip() else None


def _cells(notebook: Any) -> set[tuple[str, str]]:
    cells = notebook["cells"] if notebook else []
    return {(cell["cell_type"], "".join(cell["source"])) for cell in cells}


def main() -> int:
    base, mine, theirs = map(Path, sys.argv[1:4])
    merge(base, mine, theirs)
    return 0  # the file is good as it is, in either case


if __name__ == "__main__":
    raise SystemExit(main())
