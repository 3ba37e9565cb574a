"""Lessons outside the Lab that `dlcourse lab` starts: Notebook 7, and Lab's own words in Korean."""

from __future__ import annotations

import re

import browser
import pytest
from browser import Lab, Notebook, Notebook7
from playwright.sync_api import expect

from dlcourse.course.serve import korean_interface

pytestmark = pytest.mark.timeout(1500)
expect.set_options(timeout=browser.PATIENCE)
HANGUL = re.compile("[가-힣]")


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as chromium:
        yield chromium


def test_notebook_7_shows_ranks_panel_and_slider_with_no_extension_of_ours(chromium, tmp_path):
    """Lesson 00 from the top to its slider, in a `jupyter notebook` that has never heard of us."""
    with Notebook7(tmp_path) as server:
        page = browser.new_page(chromium)
        notebook = Notebook(page, server, "notebooks/ko/00_start.ipynb")
        code = ["".join(cell["source"]) for cell in notebook.cells()]
        kinds = [cell["cell_type"] for cell in notebook.cells()]
        slider = next(i for i, source in enumerate(code) if source.startswith("explore("))
        above = [i for i in range(slider + 1) if kinds[i] == "code"]
        for index in above:
            notebook.run(index)
            if code[index].startswith("ranks = Ranks("):  # later off the screen, and taken out
                row = page.locator(".dlc-panel tr[data-rank]").first
                expect(row).to_be_visible()
        outputs = [o for i in above for o in notebook.cells()[i]["outputs"]]
        assert not [o for o in outputs if o["output_type"] == "error"]
        assert any(code[i].startswith("%%ranks") for i in above)
        root = page.locator(".dlc-explore")
        before = root.locator("figure").inner_html()
        root.locator("input").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "before => document.querySelector('.dlc-explore figure').innerHTML !== before",
            arg=before,
        )
        assert HANGUL.search(root.inner_text())
        assert notebook.watch.outside == []
        loaded = page.request.get(f"{server.url}/lab/api/extensions").json()
        assert not [one for one in loaded if "dlcourse" in one["name"]]
        page.context.close()


@pytest.mark.parametrize(("lang", "menu"), [("ko", "파일"), ("en", "File")])
def test_labs_own_words_are_those_of_the_lesson(lang, menu, chromium, tmp_path):
    """By the language pack, without a setting of the learner."""
    assert korean_interface(), "pip install 'dlcourse[hub]' brings the language pack"
    with Lab(tmp_path, lang, interface=None) as lab:
        page = browser.new_page(chromium)
        page.goto(lab.url)
        expect(page.locator(".lm-MenuBar-itemLabel").first).to_have_text(menu)
        page.context.close()
