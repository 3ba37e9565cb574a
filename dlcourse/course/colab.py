"""Lessons on Google Colab: the link that opens one there, and the cell that installs the course.

Colab has Python, torch and all that a lesson's kernel needs, in versions that its own front end
relies on, and neither JupyterLab nor papermill, which lessons do not need. So the cell installs the
course alone, and nothing is upgraded under the kernel that runs.

Source of what is there: pip-freeze.gpu.txt of googlecolab/backend-info at 4647a1d, of the last days
of February 2026, the newest that we have seen. Python 3.12, torch 2.10.0+cu128, IPython 7.34.0,
ipykernel 6.17.1, ipywidgets 7.7.1, anywidget 0.9.21, plotly 5.24.1, pyzmq 26.2.1, numpy 2.0.2.
"""

from __future__ import annotations

import re
from importlib import metadata

from dlcourse.course.kernel import INSTALL_ID
from dlcourse.words.strings import t

__all__ = ["INSTALL", "INSTALL_ID", "link", "old_torch"]

REPOSITORY = "https://github.com/dlcourse/dlcourse"
OPENED = "https://colab.research.google.com/github/dlcourse/dlcourse/blob/HEAD/notebooks"
TORCH = (2, 11)  # what pyproject.toml asks for

# Without torch this Python is none for the course, and a download of gigabytes is nobody's wish.
INSTALL = f"""\
# On Google Colab: the course, beside Colab's own torch. Where it is installed, this does nothing.
from importlib.util import find_spec

if find_spec("dlcourse") is None and find_spec("torch"):
    import importlib
    import subprocess
    import sys

    course = ["--no-deps", "git+{REPOSITORY}"]
    names = ["anywidget", "cloudpickle", "nbformat", "plotly", "psutil"]  # which Colab may lack
    lacking = [name for name in names if find_spec(name) is None]
    for packages in filter(None, [lacking, course]):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(pip, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    importlib.invalidate_caches()"""


def link(lang: str, name: str) -> str:
    """Markdown that opens a lesson's built notebook on Colab. Text: a badge is another host's."""
    return f"[{t('course.colab.open', lang)}]({OPENED}/{lang}/{name}.ipynb)"


def old_torch() -> str:
    """A sentence where the installed torch is older than the course asks for, else nothing.

    pip sees to it elsewhere; the cell above installs the course without what it requires.
    """
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) >= TORCH:
        return ""
    return t("course.colab.old_torch", found=version, needed=".".join(map(str, TORCH)))
