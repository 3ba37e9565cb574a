"""The site's pages in one language: today's text of the built notebooks, and their kept outputs."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import executions
import nbformat
from nbformat.v4 import new_markdown_cell, new_output

from dlcourse.course import catalog

BINDER = "https://mybinder.org/v2/gh/dlcourse/dlcourse/HEAD?urlpath=lab/tree/notebooks/"
PLOTLY = "application/vnd.plotly.v1+json"
_MERMAID = re.compile(r"^```mermaid\n(.*?)^```$", re.M | re.S)

WORDS = {
    "en": {
        "recorded": "These outputs are of a whole run on {date} ({machine}).",
        "run": "Run this lesson yourself",
        "slider": "In the running lesson a slider moves this picture: run it",
        "changed": "This cell has changed since the last recorded run, so it has no output here.",
        "reading": "These pages are for reading: text, code and what whole runs gave.",
        "run_course": "Run the course yourself",
    },
    "ko": {
        "recorded": "출력은 {date}에 레슨 전체를 실행한 결과입니다({machine}).",
        "run": "이 레슨을 직접 실행하기",
        "slider": "실행 중인 레슨에서는 슬라이더로 이 그림을 바꿀 수 있습니다: 실행하기",
        "changed": "마지막으로 기록한 뒤에 바뀐 셀이라 출력이 없습니다.",
        "reading": "읽기용 페이지입니다. 설명과 코드, 그리고 레슨 전체를 실행한 결과가 있습니다.",
        "run_course": "코스를 직접 실행하기",
    },
}


def write(target: Path, lang: str) -> list[str]:
    """Write all pages of a language into `target`; returns what is out of date, in words."""
    root, stale = catalog.course_root(), []
    target.mkdir(parents=True)
    names = catalog.written_lessons(root)
    for name in names:
        notebook = nbformat.read(catalog.notebook_path(root, lang, name), as_version=4)
        kept = executions.read(name, lang)
        if changed := executions.changed(notebook, kept):
            stale.append(f"{name} ({lang}): {len(changed)} cells have changed since its kept run")
        page = lesson_page(notebook, kept, name, lang)
        nbformat.write(page, target / f"{name}.ipynb")
    folder = catalog.notebook_path(root, lang, names[0]).parent
    for page_name in ("index", "claims"):
        text = _other_language(folder.joinpath(f"{page_name}.md").read_text(encoding="utf-8"))
        if page_name == "index":
            text = _with_contents(text, names, lang)
        target.joinpath(f"{page_name}.md").write_text(text, encoding="utf-8")
    return stale


def lesson_page(notebook: Any, kept: dict[str, Any], name: str, lang: str) -> Any:
    """The built notebook with its kept outputs, each in a form that a page shows by itself."""
    words = WORDS[lang]
    address = f"{BINDER}{lang}/{name}.ipynb"
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _MERMAID.sub(_diagram, cell.source)
            continue
        cell.outputs = []
        was = kept["cells"].get(cell.id)
        if was and was["code"] != cell.source:
            cell.outputs = [_html(f"<p class='note'>{words['changed']}</p>")]
        elif was:
            cell.outputs = [_shown(output) for output in was["outputs"]]
            if "explore(" in cell.source:
                link = f"<p class='note'><a href='{address}'>{words['slider']}</a></p>"
                cell.outputs.append(_html(link))
    said = words["recorded"].format(date=kept["date"], machine=kept["machine"])
    notebook.cells.insert(1, new_markdown_cell(f"*{said}* [{words['run']}]({address})"))
    return notebook


def _shown(output: dict[str, Any]) -> Any:
    data = output.get("data", {})
    if PLOTLY in data:
        figure = {key: data[PLOTLY][key] for key in ("data", "layout")}
        # `</` would end the element; JSON reads `<\/` as the same.
        text = json.dumps(figure, ensure_ascii=False).replace("</", "<\\/")
        height = int(figure["layout"].get("height", 450))
        return _html(
            f"<div class='drawn-here' style='min-height:{height}px'>"
            f"<script type='application/json'>{text}</script></div>"
        )
    for kind in ("image/svg+xml", "text/html"):
        if kind in data:  # inside the page, where its colours follow the page's theme
            return _html(f"<div class='wide'>{''.join(data[kind])}</div>")
    return nbformat.from_dict(output)


def _html(text: str) -> Any:
    return new_output("display_data", data={"text/html": text})


def _diagram(match: re.Match[str]) -> str:
    return f"<pre class='mermaid'>\n{html.escape(match[1], quote=False)}</pre>"


def _other_language(text: str) -> str:
    """Links into the other language, which is another site for Sphinx."""
    return re.sub(r"\[([^]]+)\]\(\.\./(ko|en)/(\w+)\.md\)", r'<a href="../\2/\3.html">\1</a>', text)


def _with_contents(text: str, names: list[str], lang: str) -> str:
    """The start page, with a line for readers and the lessons for the list at the side."""
    first, rest = text.split("\n\n", 1)
    root = catalog.course_root()
    said = f"{WORDS[lang]['reading']} [{WORDS[lang]['run_course']}]({BINDER}{lang}/index.md)"
    lines = [f"{name[:2]} {catalog.title(root, name, lang)} <{name}>" for name in names]
    contents = "\n".join([*lines, "claims"])
    return f"{first}\n\n{said}\n\n{rest}\n```{{toctree}}\n:hidden:\n\n{contents}\n```\n"


def anchor(heading: str) -> str:
    """A heading's anchor, as Jupyter makes it: `## A1` is `#A1`."""
    return heading.replace(" ", "-")
