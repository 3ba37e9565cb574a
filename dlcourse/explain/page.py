"""An explanation as a table in a notebook, and as text in a terminal."""

from __future__ import annotations

import shutil
from html import escape

from dlcourse.explain.finding import KINDS, Finding
from dlcourse.explain.walk import value_text
from dlcourse.words.strings import t

_SIGNS = {
    "contradictory": "✗",
    "unknown": "?",
    "deprecated": "↷",
    "ignored": "∅",
    "implies": "⇒",
    "does": "·",
}
_CELL = (
    "text-align:left;vertical-align:top;white-space:normal;"
    "overflow-wrap:break-word;word-break:keep-all"
)
_TABLE = "margin:2px 0;width:100%;max-width:900px;table-layout:fixed"
_WIDTHS = (13, 23, 11, 11, 42)  # percent of the table, for each column
_WIDEST = 100  # columns of a terminal that are filled


class Page:
    """What an explanation is shown by: a table in a notebook, text in a terminal."""

    findings: list[Finding]
    code: str
    missing: list[str]
    version: str
    notes: list[str]

    @property
    def refused(self) -> bool:
        """Whether DeepSpeed would raise an error instead of training."""
        return any(finding.refused for finding in self.findings)

    def head(self) -> str:
        """One line: how many of each kind."""
        counts = [
            f"{_SIGNS[kind]} {t(f'explain.kind.{kind}')} {n}"
            for kind in KINDS
            if (n := sum(finding.kind == kind for finding in self.findings))
        ]
        said = t("explain.refused" if self.refused else "explain.taken", version=self.version)
        return f"{said} {', '.join(counts)}"

    def __str__(self) -> str:
        """Wrapped to the terminal's width; Korean letters count two columns."""
        width = min(_WIDEST, max(40, shutil.get_terminal_size((_WIDEST, 24)).columns))
        lines = [*self.notes, self.head()]
        for kind in KINDS:
            of_kind = [finding for finding in self.findings if finding.kind == kind]
            if of_kind:
                lines += ["", f"{_SIGNS[kind]} {t(f'explain.kind.{kind}')}"]
            for finding in of_kind:
                lines.append(f"  {_named(finding)}")
                lines += wrapped(finding.text, width - 6, "      ")
        if self.missing:
            lines += ["", t("explain.head.missing")]
            for text in self.missing:
                lines += wrapped(text, width - 6, "      ")
        if self.code:
            lines += ["", t("explain.head.code"), "", self.code.rstrip()]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Colours come from the page, so both themes of JupyterLab work."""
        head_cells = "".join(
            f'<th scope="col" style="{_CELL}">{escape(t(f"explain.column.{name}"))}</th>'
            for name in ("kind", "key", "value", "default", "text")
        )
        widths = "".join(f'<col style="width:{width}%">' for width in _WIDTHS)
        rows = "".join(_row(finding) for finding in self.findings)
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        page = (
            f"<p><strong>{escape(self.head())}</strong></p>{notes}"
            f'<table class="dlc-results" style="{_TABLE}"><colgroup>{widths}</colgroup>'
            f"<thead><tr>{head_cells}</tr></thead><tbody>{rows}</tbody></table>"
        )
        if self.missing:
            items = "".join(f"<li>{escape(text)}</li>" for text in self.missing)
            page += f"<p>{escape(t('explain.head.missing'))}</p><ul>{items}</ul>"
        if self.code:
            page += (
                f"<details><summary>{escape(t('explain.head.code'))}</summary>"
                f"<pre>{escape(self.code)}</pre></details>"
            )
        return page


def _named(finding: Finding) -> str:
    """ "zero_optimization.stage = 2 (default 0)"."""
    text = finding.path or t("explain.whole")
    if finding.value is not None and finding.value != {}:
        text += f" = {value_text(finding.value)}"
    if finding.kind == "does" and finding.value != {} and finding.default is not None:
        text += f"  ({t('explain.default', default=value_text(finding.default))})"
    return text


def wrapped(text: str, width: int, indent: str) -> list[str]:
    """Lines of at most ``width`` columns."""
    from wcwidth import wcswidth

    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and wcswidth(longer) > width:
            lines.append(indent + line)
            longer = word
        line = longer
    return [*lines, indent + line] if line else lines


def _row(finding: Finding) -> str:
    kind = f"{_SIGNS[finding.kind]} {t(f'explain.kind.{finding.kind}')}"
    value = "" if finding.value is None else value_text(finding.value)
    default = "" if finding.default is None else value_text(finding.default)
    cells = (kind, finding.path or t("explain.whole"), value, default, finding.text)
    # A name may break after a point or an underscore
    shown = (escape(cell).replace(".", ".<wbr>").replace("_", "_<wbr>") for cell in cells)
    return "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in shown) + "</tr>"
