"""Colours of the lessons' diagrams that can be read on a white page and on a black one.

JupyterLab draws a diagram once, as a picture in the colours of the theme of that moment, and does
not draw it again when the theme changes. So the build writes colours into each: every text stands
on a light ground of its own, and lines are of a grey that is apart from white and from black.
"""

from __future__ import annotations

import json
import re

_TEXT, _BOX, _EDGE, _LINE, _GROUND = "#1b1b1b", "#e6eef8", "#5b7fa8", "#808080", "#eeeeee"
_VARIABLES = {
    "mainBkg": _BOX,
    "nodeBorder": _EDGE,
    "textColor": _TEXT,
    "primaryTextColor": _TEXT,
    "titleColor": _TEXT,
    "lineColor": _LINE,
    "edgeLabelBackground": _GROUND,
    "clusterBkg": _GROUND,
    "clusterBorder": _LINE,
}
_FENCE = "```mermaid\n"
_DIRECTIVE = f"%%{{init: {json.dumps({'theme': 'base', 'themeVariables': _VARIABLES})}}}%%\n"


_DIAGRAM = re.compile(f"{_FENCE}(.*?\\n)```", re.DOTALL)


def with_colors(text: str) -> str:
    """Markdown, with the colours in each of its diagrams."""
    return _DIAGRAM.sub(lambda found: f"{_FENCE}{_DIRECTIVE}{_on_ground(found[1])}```", text)


def _on_ground(diagram: str) -> str:
    """What is said between the participants of a sequence has no ground, so it gets one."""
    head, *lines = diagram.splitlines()
    if head != "sequenceDiagram":
        return diagram
    first = next(i for i, line in enumerate(lines) if not line.startswith("  participant "))
    ground = f"  rect rgb({', '.join(str(c) for c in bytes.fromhex(_GROUND[1:]))})"
    return "\n".join([head, *lines[:first], ground, *lines[first:], "  end", ""])
