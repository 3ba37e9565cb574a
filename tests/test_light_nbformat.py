"""A figure and the course's commands do not build the grammars that jsonschema would like."""

from __future__ import annotations

import subprocess
import sys

import pytest

FIGURE = (
    "from dlcourse.figures.plotly_parts import figure_of, layout_of\n"
    "figure_of([], layout_of('x', height=100, xaxis={}, yaxis={}))\n"
    "import plotly.io._renderers\n"  # what shows a figure
)


@pytest.mark.parametrize("code", [FIGURE, "import dlcourse.course.run, papermill\n"])
def test_the_grammars_are_not_built(code):
    pytest.importorskip("rfc3987_syntax")
    asked = code + "import sys, nbformat\nassert 'jsonschema' in sys.modules\n"
    asked += "assert 'rfc3987_syntax' not in sys.modules\nimport rfc3987_syntax\n"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
