"""Every explorable of every lesson, moved by keyboard in a real JupyterLab, in both languages.

Only the cells with `explore(...)` run, in one kernel: what they need of the lesson is its imports
and assignments, and for three of them a stand-in for what the ranks have found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import browser
import nbformat
import pytest
from browser import Lab, Notebook
from playwright.sync_api import expect

from dlcourse.course.catalog import written_lessons
from dlcourse.words.strings import t

if TYPE_CHECKING:
    from playwright.sync_api import Locator

# A busy machine may need this long for the first test; a quiet one needs a minute for all of them.
pytestmark = pytest.mark.timeout(1500)
expect.set_options(timeout=browser.PATIENCE)

HANGUL = re.compile("[가-힣]")
NOTEBOOKS = browser.REPOSITORY / "notebooks"
LESSONS = written_lessons(browser.REPOSITORY)

# What ranks find out before an explorable, in numbers of the same form.
FOUND = {
    "rows": "[{'collective': 'all_reduce', 'algorithm': 'torch_all_reduce', "
    "'bytes': 4096, 'seconds': 0.001}]",
    "cured": "filmed()",
    "asked_for": "dict.fromkeys(('none', 'loss', 'bias'), [[0.65, *[0.05] * 7]])",
}
FIRST = """
from dlcourse import explore, lesson

def filmed():
    from dlcourse import Film
    from dlcourse.figures.moe import experts_by_kind
    from dlcourse.measure.frames import write_frame
    film = Film(experts_by_kind)
    for step in range(5, 30, 5):
        first = step / 100
        load = {kind: [first, *[(1 - first) / 7] * 7] for kind in ("code", "english", "korean")}
        write_frame(film.path, step=step, load=load)
    return film
"""


@dataclass(frozen=True, kw_only=True)
class Explorable:
    """A call of `explore` in a lesson: code that can run by itself, and its sliders' names."""

    code: str
    names: list[str]


def explorables(name: str, lang: str) -> list[Explorable]:
    """Those of a lesson, as its notebook has them."""
    notebook = nbformat.read(NOTEBOOKS / lang / f"{name}.ipynb", as_version=4)
    code = [c.source for c in notebook.cells if c.cell_type == "code"]
    lines = [line for source in code if "%%" not in source for line in ast.parse(source).body]
    assigned = {name: line for line in lines for name in _names_set(line)}
    found = []
    for line in lines:
        match line:
            case ast.Expr(ast.Call(ast.Name("explore")) as call):
                needed = [f"lesson(lang={lang!r}, name={name!r})", *_before(call, assigned)]
                names = [keyword.arg for keyword in call.keywords if keyword.arg != "start"]
                found.append(Explorable(code="\n".join([*needed, ast.unparse(call)]), names=names))
    return found


def _names_set(line: ast.stmt) -> list[str]:
    if isinstance(line, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in line.names]
    targets = line.targets if isinstance(line, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _before(node: ast.AST, assigned: dict[str, ast.stmt]) -> list[str]:
    """The lines that give names to what this needs, each after what it needs itself."""
    lines: list[str] = []
    read = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)]
    for name in read:
        if name in FOUND:
            lines.append(f"{name} = {FOUND[name]}")
        elif line := assigned.get(name):
            one = line
            if isinstance(line, ast.ImportFrom):
                own = [a for a in line.names if (a.asname or a.name) == name]
                one = ast.ImportFrom(line.module, own, line.level)
            lines += [*_before(one, assigned), ast.unparse(one)]
    return list(dict.fromkeys(lines))


@dataclass(frozen=True, kw_only=True)
class Shown:
    """An explorable of the notebook that all tests use: its cell, and the lesson it is from."""

    index: int
    lang: str
    theme: str
    names: list[str]


@pytest.fixture(scope="module")
def notebook(tmp_path_factory) -> Iterator[Notebook]:
    """A cell for each explorable of each lesson, in both languages, none of them run."""
    cells = [e.code for name in LESSONS for lang in ("ko", "en") for e in explorables(name, lang)]
    with browser.chromium() as chromium, Lab(tmp_path_factory.mktemp("lab")) as lab:
        page = browser.new_page(chromium)
        notebook = Notebook(page, lab, lab.write("explorables", [FIRST, *cells]))
        notebook.run(0)
        yield notebook
        assert (notebook.watch.outside, notebook.watch.errors) == ([], [])
        page.context.close()


def shown(lesson: str) -> list[Shown]:
    """The cells of a lesson; the theme changes from lesson to lesson and between languages."""
    found, index = [], 1
    for number, name in enumerate(LESSONS):
        for turn, lang in enumerate(("ko", "en")):
            theme = ("Light", "Dark")[(number + turn) % 2]
            for one in explorables(name, lang):
                if name == lesson:
                    found.append(Shown(index=index, lang=lang, theme=theme, names=one.names))
                index += 1
    return found


# Notes how long each key press of a slider takes to change the picture, in milliseconds.
NOTE_TIMES = """
root => {
  globalThis.dlcTook = [];
  let pressed;
  root.addEventListener("keydown", () => { pressed = performance.now(); }, true);
  new MutationObserver(() => {
    if (pressed) globalThis.dlcTook.push(performance.now() - pressed);
    pressed = undefined;
  }).observe(root.querySelector("figure"), { childList: true });
}
"""
# All that one sees and hears of an explorable, and what of it one cannot read.
LOOK = f"""
root => {{
  const area = root.closest(".jp-OutputArea-output");
  const [box, svg] = [area.getBoundingClientRect(), root.querySelector("svg")];
  const out = [...root.querySelectorAll("*")].filter(node => {{
    const own = node.getBoundingClientRect();
    return own.width && (own.right > box.right + 1 || own.left < box.left - 1);
  }});
  const scrolls = [root, area].filter(node => node.scrollWidth > node.clientWidth + 1);
  return {{
    values: [...root.querySelectorAll("input")].map(input => input.value),
    said: [...root.querySelectorAll("input")].map(input => input.getAttribute("aria-valuetext")),
    written: [...root.querySelectorAll("output")].map(output => output.textContent),
    words: root.innerText,
    picture: svg.innerHTML,
    alternative: svg.getAttribute("aria-label"),
    sticks_out: [...out, ...scrolls].map(node => node.outerHTML.slice(0, 80)),
    figure: ({browser.FIGURE})(root.querySelector("figure")),
    contrasts: ({browser.CONTRASTS})(root),
  }};
}}
"""


@pytest.mark.parametrize("lesson", LESSONS)
def test_every_slider_of_a_lesson_changes_its_picture_by_keyboard(lesson, notebook):
    cells = shown(lesson)
    assert cells, "a lesson has an explorable"
    for cell in cells:
        notebook.theme(f"JupyterLab {cell.theme}")
        notebook.run(cell.index)
        check_still(notebook.cells()[cell.index]["outputs"], cell)
        root = notebook.cell(cell.index).locator(".dlc-explore")
        root.evaluate(NOTE_TIMES)
        for number, name in enumerate(cell.names):
            check_slider(root, cell, number, name)
        took = notebook.page.evaluate("() => globalThis.dlcTook")
        assert min(took) < 100, took


def check_still(outputs: list[dict[str, Any]], cell: Shown) -> None:
    """Where no front end is, a picture and its words stand in the notebook."""
    assert "data" in outputs[-1], browser.as_text(outputs[-1])
    data = outputs[-1]["data"]
    assert "".join(data["image/svg+xml"]).startswith("<svg")
    assert bool(HANGUL.search("".join(data["text/plain"]))) == (cell.lang == "ko")


def check_slider(root: Locator, cell: Shown, number: int, name: str) -> None:
    """All positions of one slider, on to its end and from its beginning to where it stood."""
    slider = root.get_by_role("slider", name=t(f"explore.{name}", cell.lang), exact=True)
    if number == 0:
        slider.focus()  # from there on as a keyboard does it
    else:
        root.page.keyboard.press("Tab")
    expect(slider).to_be_focused()
    outline = slider.evaluate("input => getComputedStyle(input).outlineStyle")
    assert outline != "none", "one sees where the focus is"
    value, end = int(slider.input_value()), int(slider.get_attribute("max"))
    before = look(root, cell)
    for key in ["ArrowRight"] * (end - value) + ["Home"] + ["ArrowRight"] * value:
        root.page.keyboard.press(key)
        expect(slider).not_to_have_value(before["values"][number])
        after = look(root, cell)
        unchanged = [what for what in CHANGES if before[what] == after[what]]
        assert not unchanged, (cell, name, key, before["said"], unchanged)
        before = after


# What each move changes: the picture, and what is said in its place.
CHANGES = ("values", "said", "picture", "alternative")


def look(root: Locator, cell: Shown) -> dict[str, Any]:
    """The explorable at one position; it is checked that one can read it there."""
    seen = root.evaluate(LOOK)
    assert seen["said"] == seen["written"], "the value is said as it is written"
    assert (seen["figure"]["cut"], seen["figure"]["over"]) == ([], []), (cell, seen["said"])
    assert seen["sticks_out"] == [], (cell, seen["said"])
    weak = {text: round(x, 1) for text, x in seen["contrasts"].items() if x < 4.5}
    assert not weak, (cell, seen["said"], weak)
    for words in (seen["words"], seen["alternative"]):
        assert bool(HANGUL.search(words)) == (cell.lang == "ko"), (cell, words)
    return seen
