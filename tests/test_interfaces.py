"""What lies around the Lab of one machine: Notebook 7, Lab's own words, ranks of two machines."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import browser
import pytest
from browser import Lab, Notebook, Notebook7
from playwright.sync_api import expect
from slurm import needed

from dlcourse.bench.soak.nodes import BRIDGE, Network
from dlcourse.course.serve import korean_interface
from dlcourse.ranks.agent import follower
from dlcourse.ranks.machines import INTERFACE, JOIN, NODES

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


ON_TWO = "from dlcourse import Ranks\nranks = Ranks(4)\nranks"
WORK = """
%%ranks
import os, socket, time
from dlcourse.measure import mark_step
while True:
    mark_step(tokens=1)
    over = torch.tensor(float(os.path.exists({file!r})))
    dist.all_reduce(over, op=dist.ReduceOp.MAX)
    if over:
        break
    time.sleep(0.05)
socket.gethostname()
"""


def test_the_panel_names_the_machine_of_each_rank(chromium, tmp_path, monkeypatch):
    """Lab is on one machine, half of the ranks on a second one, and the panel is live for both."""
    needed()
    shared = tmp_path / "channel"
    shared.mkdir(mode=0o700)
    (tmp_path / "lab").mkdir()
    with Network(("beta",)) as network:
        monkeypatch.setenv(JOIN, str(shared))
        monkeypatch.setenv(NODES, "2")
        job = ["job", str(shared), "--nodes", "2", "--node", "1", "--", "run", "00"]
        agent = subprocess.Popen(
            [*network.inside("beta"), sys.executable, "-m", "dlcourse.cli", *job],
            env=os.environ | {INTERFACE: "fabric0", "PYTHONPATH": str(browser.REPOSITORY)},
        )
        monkeypatch.setenv(INTERFACE, BRIDGE)
        try:
            with Lab(tmp_path / "lab", lang="ko") as lab:
                over = lab.place / "over"
                page = browser.new_page(chromium)
                path = lab.write("two", [ON_TWO, WORK.format(file=str(over))])
                notebook = Notebook(page, lab, path)
                here = socket.gethostname()
                assert f"{here}" in notebook.run(0)
                rows = page.locator(".dlc-panel tr[data-rank]")
                expect(rows).to_have_count(4)
                for rank, name in enumerate((here, here, "beta", "beta")):
                    expect(rows.nth(rank)).to_contain_text(name)
                    whole = "cell => cell.scrollWidth <= cell.clientWidth"
                    assert rows.nth(rank).locator("th").evaluate(whole), "the name is cut"
                notebook.start(1)
                steps = page.locator(".dlc-panel [data-field=steps]")
                expect(steps).to_have_text(re.compile("[1-9]"))
                page.wait_for_function(
                    "() => Array.from(document.querySelectorAll('.dlc-panel td[data-field=bytes]'))"
                    ".filter(cell => +cell.dataset.value > 0).length === 4"
                )
                over.touch()
                assert "'beta'" in notebook.finish(1)
                if place := os.environ.get("DLCOURSE_PICTURES"):
                    page.screenshot(path=f"{place}/machines.png")
                page.context.close()
        finally:
            (shared / f"{follower.ENDED}-0").write_text("0")
            agent.wait(60)
    assert agent.returncode == 0
