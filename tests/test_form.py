"""The form of a lesson: what is hidden, what is folded, and what a core may ask of a reader."""

from __future__ import annotations

import ast
import json
import math
import re

import nbformat
import pytest
from conftest import REPOSITORY
from markdown_it import MarkdownIt

from dlcourse.cli import main
from dlcourse.course import build, catalog
from dlcourse.course.form import check_form, count
from dlcourse.course.source import read_lesson
from dlcourse.figures.charts import sweep_figure
from dlcourse.figures.data_parallel import show_equal
from dlcourse.figures.held import Said, Together, held, largest
from dlcourse.figures.tables import Table
from dlcourse.words.strings import set_language

TOP = """# %% [markdown] lang="en" form="core"
# # A lesson
# Reading {en} min + exercises 3 min.
# %% [markdown] lang="ko" en="x"
# # 레슨
# 읽기 {ko}분 + 연습 3분.
"""
EXERCISES = """# %% [markdown] lang="en"
# ## Exercises
# **1.** (3 minutes)
# %% [markdown] lang="ko" en="x"
# ## 연습 문제
# **1.** (3분)
# %%
def stub(): ...
"""
DEEPER = """# %% [markdown] lang="en"
# ## Deeper
# %% [markdown] lang="ko" en="x"
# ## 더 깊이
"""


def said(tmp_path, text: str) -> str:
    path = tmp_path / "lesson.py"
    path.write_text(text, encoding="utf-8")
    return "\n".join(map(str, check_form(read_lesson(path), path)))


def cells(number: int, lines: int = 1, meta: str = "") -> str:
    return f"# %% {meta}\n".join(["", *["x = 1\n" * lines] * number])


def top(minutes: int = 5) -> str:
    return TOP.format(en=minutes, ko=minutes)


def test_a_lesson_in_form_has_no_problem_and_one_that_declares_none_is_left_alone(tmp_path):
    assert said(tmp_path, top() + cells(50) + EXERCISES + DEEPER + cells(100, 30)) == ""
    assert said(tmp_path, (top() + cells(90, 30)).replace(' form="core"', "")) == ""
    assert said(tmp_path, top(10) + EXERCISES + DEEPER) == "", "five minutes off are no problem"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (top() + cells(53) + EXERCISES + DEEPER, "core of 56 visible cells, at most 55"),
        (top(20) + cells(14, 15) + EXERCISES + DEEPER, "211 visible lines of code, at most 199"),
        (top() + cells(1, 19) + EXERCISES + DEEPER, "core cell of 19 lines, at most 18"),
        (top(11) + EXERCISES + DEEPER, "minutes at the top, 11 + 3: counted are 5 + 3"),
        (top().replace("3 min", "9 min") + EXERCISES + DEEPER, "5 + 9: counted are 5 + 3"),
        (top().replace("분 +", "분,") + EXERCISES + DEEPER, "no minutes at the top in ko"),
        (top() + EXERCISES, '0 headings "## Deeper"'),
        (top() + EXERCISES + DEEPER.replace("더 깊이", "심화"), 'is "## 더 깊이" in Korean'),
        (top() + EXERCISES + DEEPER + EXERCISES, 'a heading after "Deeper" would end'),
    ],
)
def test_what_breaks_the_form_is_said(text, message, tmp_path):
    assert message in said(tmp_path, text)


def test_hidden_cells_count_where_they_show_something(tmp_path):
    path = tmp_path / "lesson.py"
    silent, loud = cells(60, 5, "hidden=true"), "# %% hidden=true\nx = 1\nx\n"
    path.write_text(top() + silent + loud + EXERCISES + DEEPER, encoding="utf-8")
    found = count(read_lesson(path))
    assert (found.cells, found.lines, found.longest) == (4, 1, 1)


def test_hidden_inputs_and_the_folded_heading_reach_both_notebooks(demo_root):
    path = catalog.source_path(demo_root, "97_demo")
    more = '# %% hidden=true tags=["mine"]\nfolded = 1\n' + DEEPER
    path.write_text(path.read_text("utf-8").rstrip() + "\n" + more, encoding="utf-8")
    main(["build", "--accept", "97"])
    for lang, heading in (("en", "## Deeper"), ("ko", "## 더 깊이")):
        text = catalog.notebook_path(demo_root, lang, "97_demo").read_text("utf-8")
        *_, hidden, deeper = json.loads(text)["cells"]
        assert hidden["metadata"]["jupyter"] == {"source_hidden": True}
        assert hidden["metadata"]["tags"] == ["mine", "hide-input"]
        assert deeper["source"] == [heading]
        assert deeper["metadata"] == {"jp-MarkdownHeadingCollapsed": True}
    left = [str(p) for p in build.check(demo_root) if "no stored output" not in str(p)]
    assert left == []


def test_the_form_of_all_lessons_can_be_listed(capsys):
    assert main(["build", "--form"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + len(catalog.written_lessons(catalog.course_root()))
    assert any(row.split()[:2] == ["09_accumulation", "core"] for row in rows)


def test_a_plotly_figure_beside_tables_is_refused():
    """As HTML it would load plotly from another host, which a classroom may not reach."""
    with pytest.raises(ValueError, match="return it alone"):
        Together(
            held("same", 0, allowed=0, because="it is"),
            sweep_figure([1], {"a": [1]}, x_title="x", y_title="y"),
        )


def test_no_check_of_a_figure_passes_over_a_difference_that_is_not_a_number():
    """`max` gives NaN only where it comes first; a run that diverges in its third step passed."""
    assert math.isnan(largest([0.0, math.nan, 1.0])) and largest([2, 3, 1]) == 3
    with pytest.raises(AssertionError, match=" nan, "):
        show_equal([0.0, math.nan], [0.0, 0.0])
    judged = []
    for path in (REPOSITORY / "dlcourse" / "figures").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
            named = {
                target.id: node.value
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for call in calls:
                if ast.unparse(call.func) in ("held", "_held") and len(call.args) > 1:
                    given = call.args[1]
                    given = named.get(given.id, given) if isinstance(given, ast.Name) else given
                    judged.append((path.name, call.lineno, ast.unparse(given)))
    assert len(judged) > 30
    assert not [each for each in judged if re.search(r"\bmax\(", each[2])]


def test_what_held_is_said_and_what_did_not_is_an_error():
    set_language("en")
    words = dict(allowed=5e-5, because="Adam enlarges rounding")
    line = held("equal to one process", 8.8e-6, **words)
    sentence = "equal to one process: largest difference 8.8e-06, allowed 5e-05, because Adam"
    assert repr(line).startswith(sentence)
    for difference in (6e-5, -6e-5, math.nan):
        with pytest.raises(AssertionError, match="not equal to one process: largest difference"):
            held("equal to one process", difference, **words)
    set_language("ko")
    assert "허용 5e-05" in repr(held("같음", 0, **words))
    both = Together(Table(["a"], [["<b>"]]), line)
    assert sentence in repr(both) and "&lt;b&gt;" in both._repr_html_()


@pytest.mark.parametrize("lang", ["ko", "en"])
@pytest.mark.parametrize("name", sorted(catalog.written_lessons(catalog.course_root())))
def test_no_mark_of_markdown_is_left_in_a_text(name, lang):
    """A closing ** between a bracket and a Korean letter closes nothing: **word**(bracket)."""
    path = catalog.course_root() / "notebooks" / lang / f"{name}.ipynb"
    read = MarkdownIt("commonmark").enable("table").parse
    texts = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
    formulas = re.compile(r"\$[^$\n]+\$")
    blocks = [block for text in texts for block in read(formulas.sub("", text))]
    parts = [part for block in blocks for part in block.children or []]
    left = [p.content for p in parts if p.type == "text" and re.search(r"[*`]|\]\(", p.content)]
    assert not left


def test_a_sentence_shows_code_and_short_links():
    said = Said("torch https://pytorch.org/foundation/?a=1&b=2 · by `run --all` <b>")
    assert "`run --all`" in repr(said) and "https://pytorch.org/foundation/" in repr(said)
    html = said._repr_html_()
    assert "<code>run --all</code>" in html and "&lt;b&gt;" in html
    link = '<a href="https://pytorch.org/foundation/?a=1&amp;b=2" target="_blank">pytorch.org</a> ·'
    assert link in html
    assert ">b.org</a>, (" in Said("https://b.org/c, (https://d.org/e)")._repr_html_()
