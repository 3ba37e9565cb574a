"""Kernels that the course starts: cells out of order, and notebooks that Lab may trust."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from nbformat.sign import NotebookNotary
from test_kernel import Kernel

from dlcourse.course import server

ROOT = Path(__file__).resolve().parents[1]
FIRST = {"ko": "처음 세 코드 셀을 먼저 실행하세요", "en": "Run the first three code cells"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """The course's notebooks, and the kernel that the server describes for them."""
    place = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "notebooks", place / "notebooks")
    server.write_kernel_spec(place / "kernels")
    return place


def start(place: Path, lang: str, name: str) -> Kernel:
    """A kernel as Lab's server starts it for a notebook."""
    specs = KernelSpecManager(kernel_dirs=[str(place / "kernels")])
    path = f"notebooks/{lang}/{name}.ipynb"
    env = {k: v for k, v in os.environ.items() if k != "DLCOURSE_LANG"} | {"JPY_SESSION_NAME": path}
    manager = KernelManager(kernel_name="python3", kernel_spec_manager=specs)
    return Kernel(manager, cwd=str((place / path).parent), env=env)


@pytest.fixture(scope="module", params=["ko", "en"])
def lesson(place, request):
    kernel = start(place, request.param, "01_collectives")
    kernel.lang = request.param
    yield kernel
    kernel.client.stop_channels()
    kernel.manager.shutdown_kernel(now=True)


def test_a_fresh_kernel_says_which_cells_to_run(lesson):
    first = FIRST[lesson.lang]
    for cell in ("%%ranks\nrank", "show_cards(3)", "ranks[0]", "compare('a', 1)"):
        text = lesson.run(cell)
        assert first in text and "not found" not in text, text
    # What an exercise needs is there; it says what is missing in the lesson's language.
    text = lesson.run("check('01.deadlock')")
    assert first in text and "NameError" not in text, text
    assert ("힌트" in lesson.run("hint('01.deadlock')")) == (lesson.lang == "ko")
    assert "%%ranks" in lesson.run("solution('01.deadlock')")
    assert lesson.run("import sys; print('torch' in sys.modules)") == "False\n"
    assert first not in lesson.run("no_name_of_the_lesson")


def test_a_name_of_a_later_cell_is_named_with_that_cell(lesson):
    text = lesson.run("card")  # of the third cell
    assert "gpus, gradients, card = 64, 15e9, 50e9" in text and FIRST[lesson.lang] in text
    assert "Error" not in lesson.run("lang, num_ranks = 'en', 2\nfrom dlcourse import Ranks")
    lesson.run("ranks = Ranks(2)\nonly_mine = 3")
    text = lesson.run("card")
    assert "gpus, gradients, card" in text and FIRST[lesson.lang] not in text
    assert "ranks.run(" in lesson.run("%%ranks\nonly_mine")
    source = json.loads((ROOT / "notebooks/en/01_collectives.ipynb").read_text("utf-8"))
    cells = ["".join(c["source"]) for c in source["cells"] if c["cell_type"] == "code"]
    home = next(c for c in cells if c.startswith("%%ranks") and "def " in c)
    name = home.split("def ", 1)[1].partition("(")[0]
    assert f"def {name}(" in lesson.run(f"%%ranks\n{name}")
    assert f'ranks["{name}"]' in lesson.run(name)
    assert lesson.run("%%ranks\nrank") == "rank 0: 0\nrank 1: 1\n"


def test_what_a_figure_is_made_of_is_named_with_its_cell(place):
    """Runs that `--as` keeps in the notebook, and what is fetched from the ranks."""
    kernel = start(place, "en", "09_accumulation")
    try:
        text = kernel.run("show_peaks(whole, small, parts)")  # before anything else
        assert FIRST["en"] in text
        kernel.run("show_peaks = print; lang, num_ranks = 'en', 1")
        kernel.run("from dlcourse import Ranks\nranks = Ranks(num_ranks)")
        text = kernel.run("show_peaks(whole)")
        assert "first: %%ranks 0 --as whole" in text and FIRST["en"] not in text
        text = kernel.run("ranks['peaks'][0]")
        assert "peaks is not a name in rank 0" in text and "Traceback" not in text
        assert "first: counts = (1, 2, 4, 8)" in text and "Run All Above" in text
        text = kernel.run("ranks['cases'][0]")
        assert "first: first, all_four" in text and "Run All Above" not in text
    finally:
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)


def test_the_extension_imports_nothing_of_the_course():
    """So a kernel starts as quickly as without; what connects figures with runs is 30 lines."""
    code = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
before = set(sys.modules)
shell.extension_manager.load_extension("dlcourse.course.kernel")
print(sorted(m for m in set(sys.modules) - before if not m.startswith("dlcourse.course")))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout, out.stderr) == (
        "['dlcourse', 'dlcourse.measure', 'dlcourse.measure.figure_hook']\n",
        "",
    )


# ------------------------------------------------------------------------------- trust


def test_only_lessons_as_they_ship_are_signed(tmp_path):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    own = tmp_path / "notebooks" / "ko" / "mine.ipynb"
    lesson = tmp_path / "notebooks" / "ko" / "03_data_parallel.ipynb"
    shutil.copy(lesson, own)
    strange = nbformat.read(lesson, as_version=4)
    cell = next(c for c in strange.cells if c.cell_type == "code")
    bad = [
        {"text/html": "<table onclick='x()'><tr><td>1</td></tr></table>"},
        {"text/html": "<script>x()</script>"},
        {"text/html": "<table style='background:url(x)'></table>"},
        {"image/svg+xml": "<svg onload='x()'/>"},
        {"application/javascript": "x()"},
    ]
    lessons = sorted((tmp_path / "notebooks").glob("*/[0-9]*.ipynb"))
    for data in bad:
        cell.outputs = [nbformat.v4.new_output("display_data", data)]
        nbformat.write(strange, lesson)
        notary = NotebookNotary(db_file=":memory:", secret=b"test")
        signed = server.sign_notebooks(tmp_path, notary)
        assert sorted(signed) == [path for path in lessons if path != lesson], data
        for path in (lesson, own):
            trusted = notary.check_signature(nbformat.read(path, as_version=4))
            assert not trusted, path
    assert server.sign_notebooks(tmp_path, notary) == [], "once is enough"
