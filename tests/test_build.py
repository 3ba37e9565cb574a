"""The build: one source, two notebooks; every rule of a lesson source fails when it is broken."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import nbformat
import pytest

from dlcourse.course import build, catalog
from dlcourse.course.diagrams import with_colors
from dlcourse.course.fill import filled_cell, find_source
from dlcourse.course.rules import count_words
from dlcourse.course.source import accept_translations, read_lesson, text_hash

NAME = "97_demo"


def source_of(root: Path) -> Path:
    return catalog.source_path(root, NAME)


def edit(root: Path, old: str, new: str, *, accept: bool = True) -> None:
    path = source_of(root)
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"the demo has {text.count(old)} of {old!r}"
    path.write_text(text.replace(old, new), encoding="utf-8")
    if accept:
        accept_translations(path)


def built(root: Path, lang: str) -> nbformat.NotebookNode:
    return nbformat.read(catalog.notebook_path(root, lang, NAME), as_version=4)


def messages(root: Path) -> str:
    return "\n".join(str(problem) for problem in build.check(root))


def give_output(root: Path, text: str = "True") -> None:
    """Store an output in the checked cells of both built notebooks, as ``--execute`` does."""
    for lang in catalog.LANGUAGES:
        path = catalog.notebook_path(root, lang, NAME)
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if build.CHECKED in cell.metadata.get("tags", []):
                cell.outputs = [
                    nbformat.v4.new_output(
                        "execute_result", {"text/plain": text}, execution_count=3
                    )
                ]
        nbformat.write(notebook, path)


def test_the_courses_own_notebooks_are_built_and_keep_the_rules():
    assert build.check(catalog.course_root()) == []


def test_building_twice_changes_nothing_and_checks_clean(demo_root):
    written, problems = build.build(demo_root)
    assert len(written) == 2
    assert [p.message for p in problems if "stored output" not in p.message] == []
    give_output(demo_root)
    build.build(demo_root)
    assert build.build(demo_root) == ([], [])
    assert build.check(demo_root) == []


def test_code_is_the_same_in_both_languages_but_for_the_parameter(demo_root):
    build.build(demo_root)
    ko, en = (built(demo_root, lang) for lang in ("ko", "en"))
    code = [[c.source for c in n.cells if c.cell_type == "code"] for n in (ko, en)]
    assert code[0][1].startswith('lang = "ko"') and code[1][1].startswith('lang = "en"')
    assert code[0][0] == code[1][0] and code[0][2:] == code[1][2:]
    assert [c.id for c in ko.cells] == [c.id for c in en.cells]
    texts = [[c.source for c in n.cells if c.cell_type == "markdown"] for n in (ko, en)]
    assert "시험용 레슨" in texts[0][0] and "A demo lesson" in texts[1][0]
    nbformat.validate(ko)
    assert ko.metadata.kernelspec.name == "python3"


def test_ids_stay_when_a_cell_is_added(demo_root):
    build.build(demo_root)
    before = [cell.id for cell in built(demo_root, "en").cells]
    edit(demo_root, '# %% exercise="97.mean"', '# %%\n1 + 1\n# %% exercise="97.mean"')
    build.build(demo_root)
    after = [cell.id for cell in built(demo_root, "en").cells]
    assert [i for i in after if i in before] == before and len(after) == len(before) + 1


def test_magics_and_metadata_reach_the_notebook(demo_root):
    build.build(demo_root)
    cells = {c.metadata.get("exercise"): c for c in built(demo_root, "ko").cells}
    assert cells["97.mean"].source.startswith("%%ranks\ndef mean(x):")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('# %% [markdown] lang="ko" en="', '# %% [markdown] lang="xx" en="', 'lang="en" or'),
        ("# Four ranks hold a number each.", "# Two ranks hold a number.", "stale translation"),
        ("# 함수의 실제 소스와 실행 결과입니다:", "#", "Korean cell is empty"),
        (
            "# 함수의 실제 소스와 실행 결과입니다:",
            "# The real source of a function, and a run of it:",
            "repeats the English text",
        ),
        ("total = x[0].item()", 'total = "합"', "Hangul in code"),
        ("total = x[0].item()", "total = 1  # 합", "Hangul in code"),
        ("total = x[0].item()", 'print("this is what all of the ranks got")', "the string"),
        ("total = x[0].item()", 'print(f"rank {rank} has a sum of {x} now")', "the string"),
        ("total = x[0].item()", 'print("It is done.")', "the string"),
        ("total = x[0].item()", "total = 1  # this is the sum of all the ranks", "the comment"),
        ("total = x[0].item()", "total = (", "does not parse"),
        ("total = x[0].item()", "\n".join(f"y{i} = {i}" for i in range(14)), "16 lines"),
        ("# The real source of a", "# " + "word " * 121 + "a", "at most 120"),
        ("# 함수의 실제", "# " + "낱말 " * 91 + "실제", "at most 90"),
        ("wire_bytes\"\n# %%\nshow", "wire_bite\"\n# %%\nshow", "no 'wire_bite'"),
        ("traffic:wire_bytes\"\n# %%\nshow", "gone:wire_bytes\"\n# %%\nshow", "no module"),
        ('# %% tags=["parameters"]', "# %%", "first code cell"),
        ('lang = "ko"\nnum_ranks', "num_ranks", 'needs a line lang = "ko"'),
        ('# %% [markdown] lang="en"\n# # A demo', "x = 1\n# %% [markdown]\n# # A", "first cell"),
    ],
)  # fmt: skip
def test_a_broken_source_is_named(demo_root, old, new, said):
    build.build(demo_root)
    path = source_of(demo_root)
    text = path.read_text(encoding="utf-8")
    assert said not in messages(demo_root)
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    assert old in text
    assert said in messages(demo_root)


def test_a_missing_translation_is_named_with_its_line_and_not_built(demo_root):
    path = source_of(demo_root)
    lines = path.read_text(encoding="utf-8").splitlines()
    at = next(i for i, line in enumerate(lines) if 'lang="ko"' in line and i > 10)
    del lines[at : at + 2]
    path.write_text("\n".join(lines), encoding="utf-8")
    english = next(i for i, line in enumerate(lines, 1) if 'lang="en"' in line and i > 10)
    found = [p for p in build.check(demo_root) if "no Korean translation" in p.message]
    assert [p.line for p in found] == [english]
    assert text_hash("The real source of a function, and a run of it:") in found[0].message
    assert build.build(demo_root)[0] == []


def test_two_long_texts_in_a_row(demo_root):
    pair = '# %% [markdown] lang="en"\n# {en}\n# %% [markdown] lang="ko" en=""\n# {ko}\n'
    long = pair.format(en="word " * 61, ko="낱말 " * 46)
    short = pair.format(en="word " * 60, ko="낱말 " * 45)
    edit(demo_root, '# %% exercise="97.mean"', long + short + '# %% exercise="97.mean"')
    assert "in a row" not in messages(demo_root)
    edit(demo_root, '# %% exercise="97.mean"', long + long + '# %% exercise="97.mean"')
    said = messages(demo_root)
    assert "over 60 words" in said and "over 45 eojeol" in said


def test_lines_of_problems_are_the_sources_lines(demo_root):
    edit(demo_root, "total = x[0].item()", 'total = "합"')
    lines = source_of(demo_root).read_text(encoding="utf-8").splitlines()
    found = [p for p in build.check(demo_root) if "Hangul in code" in p.message]
    assert [lines[p.line - 1] for p in found] == ['total = "합"']


def test_an_expected_message_is_not_prose(demo_root):
    quoted = 'with expect_failure("rank 1 never reached all_reduce at all"):\n    pass'
    edit(demo_root, "total = x[0].item()", quoted)
    assert "the string" not in messages(demo_root)


def test_accept_marks_a_revised_translation(demo_root):
    edit(demo_root, "# Four ranks hold", "# Two ranks hold", accept=False)
    assert "stale translation" in messages(demo_root)
    changed = accept_translations(source_of(demo_root))
    assert len(changed) == 1
    assert "stale" not in messages(demo_root)
    assert accept_translations(source_of(demo_root)) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda n: n.cells[2].update(source=n.cells[2].source + "\nx = 1"), "differs from ko's"),
        (lambda n: n.cells.pop(), "number of code cells differs"),
        (lambda n: n.cells[0].update(source="other"), "differs from what its source builds"),
        (lambda n: n.metadata.update(widgets={"state": {}}), "widget state"),
        (
            lambda n: n.cells[3].outputs.append(
                nbformat.v4.new_output(
                    "display_data", {"application/vnd.jupyter.widget-view+json": {}}
                )
            ),
            "widget state",
        ),
        (lambda n: n.cells[0].update(source="x" * 300_001), "at most 300"),
    ],
)
def test_a_changed_built_file_is_named(demo_root, spoil, said):
    build.build(demo_root)
    path = catalog.notebook_path(demo_root, "en", NAME)
    notebook = nbformat.read(path, as_version=4)
    spoil(notebook)
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    found = [p for p in build.check(demo_root) if said in p.message]
    assert found and str(found[0].path) == "notebooks/en/97_demo.ipynb"


def test_a_built_file_is_compared_byte_by_byte(demo_root):
    build.build(demo_root)
    path = catalog.notebook_path(demo_root, "ko", NAME)
    assert "differs from" not in messages(demo_root)
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert "ko/97_demo.ipynb" in messages(demo_root) and "differs from" in messages(demo_root)


def test_missing_and_orphan_files_are_named(demo_root):
    build.build(demo_root)
    catalog.notebook_path(demo_root, "ko", NAME).unlink()
    (demo_root / "notebooks" / "en" / "98_gone.ipynb").write_text("{}")
    said = messages(demo_root)
    assert "ko/97_demo.ipynb: not built yet" in said
    assert "en/98_gone.ipynb: has no source" in said


def test_outputs_of_checked_cells_are_taken_over_until_their_code_changes(demo_root):
    build.build(demo_root)
    assert "no stored output" in messages(demo_root)
    give_output(demo_root)
    build.build(demo_root)
    checked = [
        c for c in built(demo_root, "ko").cells if build.CHECKED in c.metadata.get("tags", [])
    ]
    assert checked[0].outputs[0].data["text/plain"] == "True"
    assert checked[0].execution_count is not None  # without it nbval compares nothing
    edit(demo_root, "# Four ranks hold", "# Three ranks hold")
    build.build(demo_root)
    assert build.check(demo_root) == []
    edit(demo_root, "sorted(set(ranks", "sorted(list(ranks")
    build.build(demo_root)
    assert "no stored output" in messages(demo_root)


def test_outputs_of_other_cells_are_never_kept(demo_root):
    build.build(demo_root)
    path = catalog.notebook_path(demo_root, "en", NAME)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="ran")]
    notebook.cells[2].execution_count = 1
    nbformat.write(notebook, path)
    build.build(demo_root)
    assert built(demo_root, "en").cells[2].outputs == []


def test_streams_are_joined_and_widgets_dropped():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "a\n"},
        {"output_type": "stream", "name": "stdout", "text": ["b\n"]},
        {"output_type": "display_data", "data": {"application/vnd.jupyter.widget-view+json": {}}},
        {"output_type": "execute_result", "execution_count": 9, "data": {"text/plain": "1"}},
    ]
    cleaned = build.clean_outputs(outputs, 4)
    assert [o["output_type"] for o in cleaned] == ["stream", "execute_result"]
    assert cleaned[0]["text"] == "a\nb\n" and cleaned[1]["execution_count"] == 4


MODULE = '''
from __future__ import annotations

import math
import torch
from os import path as ospath, sep
from .other import helper
from .other import second, third

raise RuntimeError("imported")

SCALE = 2


def used(x):
    return helper(x) * SCALE + second


def plain(x: float) -> float:
    """Doc."""
    return math.sqrt(used(x)) + torch.pi


@used
class Thing:
    size = SCALE

    def same(self) -> Thing: ...
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "fillpackage"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "fillpackage.module"


def test_a_source_cell_has_the_real_source_and_the_imports_it_needs(package):
    lines = filled_cell(f"{package}:plain,used").splitlines()
    assert lines[:6] == [
        "%%ranks",
        "import math",
        "from fillpackage.other import helper, second",
        "from fillpackage.module import SCALE",
        "",
        "def plain(x: float) -> float:",
    ]
    assert lines[6] == '    """Doc."""'
    assert lines[-2:] == ["def used(x):", "    return helper(x) * SCALE + second"]
    kernel = filled_cell(f"{package}:used", kernel=True)
    assert kernel.startswith("from fillpackage.other import helper, second\n")
    itself = filled_cell(f"{package}:Thing").splitlines()
    assert itself[4:6] == ["@used", "class Thing:"]
    assert itself[1] == "from __future__ import annotations" and "Thing" in itself[-1]


def test_what_lab_would_strike_out_is_named(demo_root):
    text = '# %% [markdown] lang="en"\n# {en}\n# %% [markdown] lang="ko" en=""\n# {ko}\n'
    heading = text.format(en="## From 20~50% to 30~70%", ko="## 20~50%에서 30~70%까지")
    once = text.format(en="20~50%, in `a~b~c`.", ko="20~50%입니다. `a~b~c`.")
    edit(demo_root, '# %% exercise="97.mean"', once + '# %% exercise="97.mean"')
    assert "strike out" not in messages(demo_root)
    edit(demo_root, '# %% exercise="97.mean"', heading + '# %% exercise="97.mean"')
    assert messages(demo_root).count("strike out") == 2


def test_a_long_import_is_wrapped_and_not_cut_off_in_lab(package, tmp_path):
    names = [f"a_name_of_quite_some_length_{i}" for i in range(6)]
    uses = "def uses():\n" + "".join(f"    {name}()\n" for name in names)
    imports = f"from .other import ({', '.join(names)})\n\n"
    (tmp_path / "fillpackage" / "module.py").write_text(imports + uses)
    code = filled_cell(f"{package}:uses", kernel=True)
    assert max(map(len, code.splitlines())) <= 100
    node = ast.parse(code).body[0]
    assert isinstance(node, ast.ImportFrom) and node.module == "fillpackage.other"
    assert [alias.name for alias in node.names] == names


def test_a_module_is_never_imported_and_an_unknown_name_lists_the_known(package):
    assert find_source(package, "Thing").code.startswith("@used\nclass Thing")
    with pytest.raises(ValueError, match="it has: SCALE, Thing, plain, used"):
        find_source(package, "Other")


def test_a_source_change_makes_the_built_file_differ(demo_root, package, tmp_path):
    edit(
        demo_root,
        'dlcourse.formulas.traffic:wire_bytes"\n# %%\nshow',
        f'{package}:plain"\n# %%\nshow',
    )
    build.build(demo_root)
    give_output(demo_root)
    build.build(demo_root)
    assert build.check(demo_root) == []
    module = tmp_path / "fillpackage" / "module.py"
    module.write_text(MODULE.replace("math.sqrt", "math.cbrt"))
    assert "differs from what its source builds" in messages(demo_root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# A title\n\nfour more words here", 6),
        ("see [the page](https://example.org/a b) now", 4),
        ("```mermaid\ngraph LR\n A --> B\n```\ntwo words", 2),
        ("$a + b + c$ is `x = y + z`", 3),
        ("| a | b |\n|---|---|", 2),
        ("랭크 네 개가 **합을** 구합니다.", 5),
    ],
)
def test_words_as_a_reader_counts_them(text, words):
    assert count_words(text) == words


def test_the_start_page_lists_all_lessons_and_links_the_written_ones(demo_root):
    root, course = demo_root, Path(__file__).parents[1]
    text = catalog.source_path(course, "index").read_text(encoding="utf-8")
    (root / "notebooks" / "source" / "index.py").write_text(text, encoding="utf-8")
    source_of(root).rename(catalog.source_path(root, "00_start"))
    build.build(root, ["00_start"])
    page = (root / "notebooks" / "en" / "index.md").read_text(encoding="utf-8")
    assert "[Start here](00_start.ipynb)" in page and "{{" not in page
    full = build.lesson_table(course, "ko").splitlines()
    lessons = catalog.all_lessons(course)
    assert set(catalog.LESSONS) <= set(lessons) and len(full) == 2 + len(lessons)
    for name, row in zip(lessons, full[2:], strict=True):
        written = catalog.source_path(course, name).exists()
        assert (f"]({name}.ipynb)" in row) == written
        assert ("준비 중" in row) == (not written)


def test_a_notebook_that_its_source_no_longer_builds_is_not_current(demo_root):
    build.build(demo_root)
    assert build.is_current(demo_root, NAME, "en") and build.is_current(demo_root, NAME, "ko")
    edit(demo_root, "Four ranks hold", "Three ranks hold")
    assert not build.is_current(demo_root, NAME, "en")


def test_the_parser_sees_what_jupytext_sees(demo_root):
    import jupytext

    cells = jupytext.read(source_of(demo_root), fmt="py:percent").cells
    lesson = read_lesson(source_of(demo_root))
    code = [block.code for block in lesson.blocks if block.kind == "code"]
    assert code == [cell.source for cell in cells if cell.cell_type == "code"]
    assert json.dumps(lesson.problems, default=str) == "[]"


def test_source_is_found_in_a_file_that_a_learner_writes_and_changes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    for value in (1, 2):
        (tmp_path / "my_copy.py").write_text(f"class NaiveDataParallel:\n    mine = {value}\n")
        found = find_source("my_copy", "NaiveDataParallel")
        assert found.code.endswith(f"mine = {value}") and found.path.parent == tmp_path
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(ValueError, match="no module '__main__'"):
        find_source("__main__", "NaiveDataParallel")


def test_what_is_said_in_a_sequence_stands_on_a_light_ground():
    """Its words have no ground of their own, and were black on JupyterLab's dark page."""
    talk = "```mermaid\nsequenceDiagram\n  participant A as rank 0\n  A->>A: put\n```\n\ntext\n"
    told = with_colors(talk).splitlines()
    at = told.index("  A->>A: put")
    assert told[at - 2 :] == [
        "  participant A as rank 0", "  rect rgb(238, 238, 238)", "  A->>A: put", "  end", "```",
        "", "text",
    ]  # fmt: skip
    chart = "```mermaid\nflowchart LR\n  A --> B\n```\n"
    assert "rect" not in with_colors(chart + chart)
    assert with_colors(chart + chart).count("%%{init") == 2
