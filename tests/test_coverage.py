"""`make coverage` gives a figure of the whole course: most of its code runs in ranks only."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

from coverage import Coverage

from dlcourse.collectives import ring

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = """
from dlcourse import Ranks
with Ranks(2) as ranks:
    ranks.cell("from dlcourse.collectives.ring import ring_all_reduce")
    ranks.cell("ring_all_reduce(torch.ones(4))")
"""


def test_what_ranks_run_is_measured_though_they_end_by_sigkill(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    data, settings = f"--data-file={tmp_path / 'data'}", f"--rcfile={REPOSITORY / 'pyproject.toml'}"
    command = [sys.executable, "-m", "coverage", "run", data, settings, "script.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    measured = Coverage(str(tmp_path / "data"))
    measured.combine()
    source, first = inspect.getsourcelines(ring.ring_all_reduce)
    inside = set(range(first + len(source) // 2, first + len(source)))
    assert inside & set(measured.get_data().lines(ring.__file__) or [])
