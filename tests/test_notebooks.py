"""nbval over the built notebooks: every lesson in Korean, and the first one in English too.

The code cells of both languages are proved equal by ``dlcourse build --check``. Cells tagged
``nbval-check-output`` must give the output that is committed; the others must not fail.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlcourse.course import build, catalog

TESTS = Path(__file__).parent
ROOT = catalog.course_root()
LESSONS = catalog.written_lessons(ROOT)


def nbval(notebook: Path) -> subprocess.CompletedProcess[str]:
    """Run nbval on one notebook in a process of its own, as ``make test`` does."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--nbval-lax"),
            "--nbval-cell-timeout=400",
            f"--nbval-sanitize-with={TESTS / 'nbval_sanitize.cfg'}",
            str(notebook),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "DLCOURSE_PANEL": "off"},
        timeout=1500,
    )


@pytest.mark.timeout(1600)
@pytest.mark.parametrize(
    ("lang", "name"), [*(("ko", name) for name in LESSONS), *(("en", n) for n in LESSONS[:1])]
)
def test_a_lesson_gives_its_committed_outputs(lang, name):
    done = nbval(catalog.notebook_path(ROOT, lang, name))
    assert done.returncode == 0, done.stdout[-6000:]


# Binder, Colab and a learner's laptop have none of them. Python runs a file of this name first.
WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.partition(".")[0] in {peers}
        return None if hidden else PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
PEERS = ("accelerate", "deepspeed", "megatron", "mlx", "mpi4py")


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("name", [name for name in LESSONS if name[:2] in ("14", "15")])
def test_a_lesson_goes_through_without_the_peer_libraries(name, tmp_path, monkeypatch):
    """The two that show most of them; the others by `dlcourse bench binder`, without peers."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT.format(peers=PEERS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    hidden = "from importlib.util import find_spec; print([find_spec(p) for p in {}])"
    said = subprocess.check_output([sys.executable, "-c", hidden.format(PEERS)], text=True)
    assert said.strip() == str([None] * len(PEERS))
    done = nbval(catalog.notebook_path(ROOT, "ko", name))
    assert done.returncode == 0, done.stdout[-6000:]


def test_nbval_sees_a_changed_output_and_a_failing_cell(demo_root):
    """The demo passes; with another committed output, or a failing cell, it does not."""
    build.build(demo_root)
    build.execute(demo_root, "97_demo", "en")
    path = catalog.notebook_path(demo_root, "en", "97_demo")
    passed = nbval(path)
    assert passed.returncode == 0, passed.stdout
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    checked = next(c for c in cells if build.CHECKED in c["metadata"].get("tags", []))
    checked["outputs"][0]["data"]["text/plain"] = ["False"]
    cells[-1]["source"] = ["assert len(ranks) == 7"]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    failed = nbval(path)
    assert failed.returncode == 1
    assert "2 failed" in failed.stdout and "mismatch" in failed.stdout, failed.stdout
