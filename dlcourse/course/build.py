"""Build the Korean and English notebooks from one source a lesson, and check them.

Building is a pure function of the sources, the course's modules and, for cells tagged
``nbval-check-output``, the outputs that the built notebook already holds. So ``build`` twice
changes nothing, and ``build --check`` compares bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from dlcourse.course import catalog, colab
from dlcourse.course.claims_page import claims_pages
from dlcourse.course.diagrams import with_colors
from dlcourse.course.fill import filled_cell
from dlcourse.course.form import check_form, is_deeper, is_hidden, table
from dlcourse.course.room_check import check_room
from dlcourse.course.rules import MAX_NOTEBOOK_BYTES, check_code, check_texts
from dlcourse.course.source import Block, Lesson, Problem, read_lesson
from dlcourse.light_nbformat import nbformat

CHECKED = "nbval-check-output"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_LANG_LINE = re.compile(r'^lang\s*=\s*["\'](\w+)["\']', flags=re.M)
_KEPT_METADATA = ("tags", "exercise", "source")  # of a code cell; the rest is for the build
_WIDGET_TYPES = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)

Outputs = dict[str, list[dict[str, Any]]]  # cell id → stored outputs


def build(root: Path, names: list[str] | None = None) -> tuple[list[Path], list[Problem]]:
    """Write the notebooks of the lessons (all by default), and the start pages.

    Returns the files that changed, and the problems of the sources; a lesson whose source has a
    structural problem (a missing translation, an unknown name) is not written.
    """
    written: list[Path] = []
    problems: list[Problem] = []
    paths = _chosen(root, names)
    index = catalog.source_path(root, catalog.INDEX)
    if index.exists() and index not in paths:
        paths.append(index)  # the start page links the lessons that are written
    for path in paths:
        expected, found = expected_files(root, path)
        problems += found
        for target, text in expected.items():
            if not target.exists() or target.read_text(encoding="utf-8") != text:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text, encoding="utf-8")
                written.append(target)
    return written, problems


def check(root: Path, names: list[str] | None = None) -> list[Problem]:
    """Every way in which sources and built notebooks break the rules; writes nothing."""
    problems: list[Problem] = []
    for path in _chosen(root, names):
        expected, found = expected_files(root, path)
        problems += found
        for target, text in expected.items():
            problems += _check_file(root, target, text)
        name = catalog.name_of(path)
        if name != catalog.INDEX:
            problems += _check_same_code(root, name)
            problems += check_room(root, read_lesson(path, path.relative_to(root)))
    if names is None:
        problems += _orphans(root)
    return problems


def is_current(root: Path, name: str, lang: str) -> bool:
    """Whether the built notebook of a lesson is what its source builds now."""
    built = catalog.notebook_path(root, lang, name)
    expected = expected_files(root, catalog.source_path(root, name))[0].get(built)
    return expected is not None and built.read_text(encoding="utf-8") == expected


def expected_files(root: Path, path: Path) -> tuple[dict[Path, str], list[Problem]]:
    """What the built files of a source must hold (path → text), and the source's problems."""
    shown = path.relative_to(root)
    lesson = read_lesson(path, shown)
    problems = [*lesson.problems, *check_texts(lesson, shown)]
    if lesson.name == catalog.INDEX:
        return _index_pages(root, lesson, shown, problems)
    fill_problems = _fill(lesson, shown)
    problems += fill_problems
    problems += _check_parameters(lesson, shown)
    for block in lesson.blocks:
        if block.kind == "code" and "source" not in block.metadata:
            problems += check_code(block, shown)
    if not fill_problems:
        problems += check_form(lesson, shown)
    if fill_problems or any(set(b.text) != {"en", "ko"} for b in lesson.blocks if b.kind == "text"):
        return {}, problems
    files = {}
    for lang in catalog.LANGUAGES:
        target = catalog.notebook_path(root, lang, lesson.name)
        notebook = notebook_of(lesson, lang, stored_outputs(target))
        files[target] = nbformat.writes(notebook) + "\n"
        problems += _check_outputs(notebook, lesson, shown, lang)
    return files, problems


def notebook_of(lesson: Lesson, lang: str, outputs: Outputs | None = None) -> Any:
    """The notebook of a lesson in one language, with the outputs given for its checked cells."""
    outputs = outputs or {}
    used: Counter[str] = Counter()
    cells = []
    code_cells = 0
    opened = False
    for block in lesson.blocks:
        if block.kind == "code" and not code_cells:
            cells.append(_install_cell())
            code_cells += 1
        # The id comes from the text before any translation, so it is the same in both languages
        # and stays when cells are added around it.
        base = block.code if block.kind == "code" else block.text["en"]
        key = hashlib.sha256(f"{block.kind}\n{base}".encode()).hexdigest()[:10]
        used[key] += 1
        cell_id = f"{block.kind}-{key}" + (f"-{used[key]}" if used[key] > 1 else "")
        if block.kind == "text":
            text = with_colors(block.text[lang])
            if not opened:
                text += "\n\n" + colab.link(lang, lesson.name)
                opened = True
            cell = nbformat.v4.new_markdown_cell(text, id=cell_id)
            if is_deeper(block):  # Lab folds all below it away; its code runs all the same
                cell.metadata["jp-MarkdownHeadingCollapsed"] = True
            cells.append(cell)
            continue
        code_cells += 1
        source = set_language(block.code, lang) if "parameters" in block.tags else block.code
        cell = nbformat.v4.new_code_cell(source, id=cell_id)
        cell.metadata.update({k: block.metadata[k] for k in _KEPT_METADATA if k in block.metadata})
        if is_hidden(block):  # folded in Lab; the tag says the same to Jupyter Book and nbconvert
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.metadata["tags"] = [*block.tags, "hide-input"]
        if outputs.get(cell_id):
            cell.outputs = nbformat.from_dict(clean_outputs(outputs[cell_id], code_cells))
            cell.execution_count = code_cells  # nbval compares only a cell that has a number
        cells.append(cell)
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def _install_cell() -> Any:
    """What a notebook needs that is opened beside no course, as on Colab; not part of the site."""
    cell = nbformat.v4.new_code_cell(colab.INSTALL, id=colab.INSTALL_ID)
    cell.metadata.update({"jupyter": {"source_hidden": True}, "tags": ["remove-cell"]})
    return cell


def form_table(root: Path, names: list[str] | None = None) -> str:
    """How long each lesson's core is, whether or not it declares the form."""
    lessons = []
    for path in _chosen(root, names):
        lesson = read_lesson(path)
        if lesson.name != catalog.INDEX:
            _fill(lesson, path)
            lessons.append(lesson)
    return table(lessons)


def set_language(code: str, lang: str) -> str:
    """The parameters cell with its ``lang`` line set."""
    return _LANG_LINE.sub(f'lang = "{lang}"', code, count=1)


def stored_outputs(path: Path) -> Outputs:
    """Outputs of the checked cells of a built notebook, by cell id; empty if there is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {
        cell["id"]: cell["outputs"]
        for cell in cells
        if CHECKED in cell.get("metadata", {}).get("tags", []) and cell.get("outputs")
    }


def clean_outputs(outputs: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Outputs as they are committed: streams joined, no widget, no run's own numbering."""
    cleaned: list[dict[str, Any]] = []
    for output in outputs:
        output = json.loads(json.dumps(output))
        if any(kind in output.get("data", {}) for kind in _WIDGET_TYPES):
            continue
        if output["output_type"] == "stream":
            output["text"] = "".join(output["text"])
            same = [o for o in cleaned if o.get("name") == output["name"]]
            if same:
                same[0]["text"] += output["text"]
                continue
        for kind, value in output.get("data", {}).items():
            if isinstance(value, list) and kind.startswith("text/"):
                output["data"][kind] = "".join(value)
        if output["output_type"] == "execute_result":
            output["execution_count"] = count
        if "metadata" in output:
            output["metadata"] = {}
        cleaned.append(output)
    return cleaned


def execute(root: Path, name: str, lang: str) -> list[Path]:
    """Run a lesson's built notebook and keep the outputs of its checked cells.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; nothing is written.
    """
    from dlcourse.course.run import run_cells

    path = catalog.source_path(root, name)
    expected, problems = expected_files(root, path)
    target = catalog.notebook_path(root, lang, name)
    if target not in expected:
        raise ValueError("; ".join(str(p) for p in problems))
    notebook = nbformat.reads(expected[target], as_version=4)
    if not any(CHECKED in cell.metadata.get("tags", []) for cell in notebook.cells):
        return []
    run_cells(notebook, cwd=target.parent)
    outputs = {
        cell.id: cell.outputs
        for cell in notebook.cells
        if CHECKED in cell.metadata.get("tags", []) and cell.outputs
    }
    lesson = read_lesson(path)
    _fill(lesson, path)
    text = nbformat.writes(notebook_of(lesson, lang, outputs)) + "\n"
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return []
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    return [target]


def _chosen(root: Path, names: list[str] | None) -> list[Path]:
    if names is not None:
        return [catalog.source_path(root, name) for name in names]
    index = catalog.source_path(root, catalog.INDEX)
    return [*catalog.sources(root), *([index] if index.exists() else [])]


def _fill(lesson: Lesson, shown: Path) -> list[Problem]:
    """Put the module's source into the cells that ask for it."""
    problems = []
    for block in lesson.blocks:
        reference = block.metadata.get("source") if block.kind == "code" else None
        if reference is None:
            continue
        if block.code.strip():
            problems.append(
                Problem(shown, block.line, "a cell with source= must be empty: the build fills it")
            )
        try:
            kernel = block.metadata.get("where") == "kernel"
            block.code = filled_cell(reference, kernel=kernel)
        except (ValueError, SyntaxError) as error:
            problems.append(Problem(shown, block.line, str(error)))
    return problems


def _check_parameters(lesson: Lesson, shown: Path) -> list[Problem]:
    code = [block for block in lesson.blocks if block.kind == "code"]
    cells = [block for block in code if "parameters" in block.tags]
    if len(cells) != 1 or cells[0] is not code[0]:
        return [
            Problem(shown, 1, 'the first code cell, and no other, must have tags=["parameters"]')
        ]
    if not _LANG_LINE.search(cells[0].code):
        return [Problem(shown, cells[0].line, 'the parameters cell needs a line lang = "ko"')]
    return []


def _check_outputs(notebook: Any, lesson: Lesson, shown: Path, lang: str) -> list[Problem]:
    cells = [cell for cell in notebook.cells if cell.id != colab.INSTALL_ID]
    return [
        Problem(
            shown,
            block.line,
            f"cell tagged {CHECKED} has no stored output in {lang}: run "
            f"`dlcourse build --execute {lesson.name[:2]}`",
        )
        for block, cell in zip(lesson.blocks, cells, strict=True)
        if CHECKED in block.tags and not cell.outputs
    ]


def _check_file(root: Path, target: Path, expected: str) -> list[Problem]:
    shown = target.relative_to(root)
    if not target.exists():
        return [Problem(shown, 0, "not built yet: run `dlcourse build`")]
    text = target.read_text(encoding="utf-8")
    problems = []
    size = len(text.encode())
    if target.suffix == ".ipynb" and size > MAX_NOTEBOOK_BYTES:
        problems.append(
            Problem(
                shown, 0, f"{size // 1000} KB, at most {MAX_NOTEBOOK_BYTES // 1000}: remove outputs"
            )
        )
    if _widget_state(text):
        problems.append(Problem(shown, 0, "holds widget state: run `dlcourse build`"))
    if text != expected:
        line = next(
            (
                i
                for i, (a, b) in enumerate(
                    zip(text.splitlines(), expected.splitlines(), strict=False), 1
                )
                if a != b
            ),
            min(len(text.splitlines()), len(expected.splitlines())) + 1,
        )
        problems.append(
            Problem(shown, line, "differs from what its source builds: run `dlcourse build`")
        )
    return problems


def _widget_state(text: str) -> bool:
    try:
        notebook = json.loads(text)
    except ValueError:
        return False
    if "widgets" in notebook.get("metadata", {}):
        return True
    return any(
        kind in output.get("data", {})
        for cell in notebook.get("cells", [])
        for output in cell.get("outputs", [])
        for kind in _WIDGET_TYPES
    )


def _check_same_code(root: Path, name: str) -> list[Problem]:
    """The built notebooks' code cells must be equal, but for the language parameter."""
    code: dict[str, list[tuple[str, str, Any]]] = {}
    for lang in catalog.LANGUAGES:
        path = catalog.notebook_path(root, lang, name)
        try:
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
            code[lang] = [
                (cell["id"], "".join(cell["source"]), cell["metadata"])
                for cell in cells
                if cell["cell_type"] == "code"
            ]
        except (OSError, ValueError, KeyError):
            return []  # a missing or broken file is a problem of its own
    first, second = catalog.LANGUAGES
    shown = catalog.notebook_path(root, second, name).relative_to(root)
    if len(code[first]) != len(code[second]):
        counts = " and ".join(f"{len(code[lang])} in {lang}" for lang in catalog.LANGUAGES)
        return [Problem(shown, 0, f"number of code cells differs ({counts}): run `dlcourse build`")]
    problems = []
    for i, ((_, a, meta_a), (_, b, meta_b)) in enumerate(
        zip(code[first], code[second], strict=True), 1
    ):
        if "parameters" in meta_a.get("tags", []):
            a = set_language(a, second)
        if a != b or meta_a != meta_b:
            problems.append(
                Problem(shown, 0, f"code cell {i} differs from {first}'s: run `dlcourse build`")
            )
    return problems


def _orphans(root: Path) -> list[Problem]:
    known = {catalog.name_of(path) for path in [*_chosen(root, None), *claims_pages(root)]}
    return [
        Problem(path.relative_to(root), 0, "has no source: delete it, or add its source")
        for lang in catalog.LANGUAGES
        for path in sorted((root / "notebooks" / lang).glob("*.*"))
        if path.suffix in (".ipynb", ".md") and path.stem not in known
    ]


def _index_pages(
    root: Path, lesson: Lesson, shown: Path, problems: list[Problem]
) -> tuple[dict[Path, str], list[Problem]]:
    """The start page: Markdown, because Lab shows it at once and no kernel has to start for it."""
    problems = problems + [
        Problem(shown, block.line, "the start page holds text only: remove the code cell")
        for block in lesson.blocks
        if block.kind == "code"
    ]
    blocks: list[Block] = [b for b in lesson.blocks if set(b.text) == {"en", "ko"}]
    files = {}
    for lang in catalog.LANGUAGES:
        body = "\n\n".join(block.text[lang].strip() for block in blocks)
        body = body.replace("{{lessons}}", lesson_table(root, lang))
        target = catalog.notebook_path(root, lang, lesson.name).with_suffix(".md")
        files[target] = body + "\n"
    return files | claims_pages(root), problems


def lesson_table(root: Path, lang: str) -> str:
    """Markdown table of all lessons, with a link to each that is written."""
    from dlcourse.words.strings import t
    from dlcourse.words.text_table import markdown_table

    rows = []
    written = catalog.written_lessons(root)
    for name in catalog.all_lessons(root):
        number, title = name[:2], catalog.title(root, name, lang)
        if name in written:
            title = f"[{title}]({name}.ipynb)"
        else:
            title = f"{title} ({t('course.index.planned', lang)})"
        rows.append([number, title, catalog.question(root, name, lang)])
    head = ["", t("course.index.lesson", lang), t("course.index.question", lang)]
    return markdown_table(head, rows)
