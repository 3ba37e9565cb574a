"""The course as a site to read: built for real, and looked at in a real Chromium."""

from __future__ import annotations

import functools
import http.server
import re
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dlcourse.course import catalog

DOCS = Path(__file__).resolve().parents[1] / "docs"
sys.path.insert(0, str(DOCS))
import executions  # noqa: E402
import make_site  # noqa: E402
import pages  # noqa: E402

LESSONS = catalog.written_lessons(catalog.course_root())
LANGUAGES = ("ko", "en")
SIZE = 40e6  # bytes: what may be asked of who puts it on a web server

pytestmark = pytest.mark.timeout(1200)


# ------------------------------------------------------------------------------ a lesson's page


def page_of(*cells, kept=()):
    notebook = new_notebook(cells=[new_markdown_cell("# A title"), *cells])
    kept = {"machine": "2 CPU cores", "date": "2026-11-28", "cells": dict(kept)}
    return pages.lesson_page(notebook, kept, "03_data_parallel", "en")


def html_of(cell) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell.outputs)


def test_an_output_stands_below_the_code_that_gave_it_and_below_no_other():
    output = {"output_type": "stream", "name": "stdout", "text": "42\n"}
    kept = [(id_, {"code": "answer()", "outputs": [output]}) for id_ in ("same", "other")]
    same, other = new_code_cell("answer()", id="same"), new_code_cell("question()", id="other")
    page = page_of(same, other, kept=kept)
    assert page.cells[-2].outputs == [output]
    assert "has changed since" in html_of(page.cells[-1]) and "42" not in str(page.cells[-1])
    assert executions.changed(page, {"cells": dict(kept)}) == ["other"]


def test_the_page_says_when_and_where_it_was_run():
    assert "2026-11-28 (2 CPU cores)" in page_of().cells[1].source
    assert "/en/03_data_parallel.ipynb" in page_of().cells[1].source


def test_a_figure_whose_text_looks_like_markup_does_not_end_its_element():
    figure = {"data": [{"name": "</script><b>"}], "layout": {"height": 300}}
    output = {"output_type": "display_data", "metadata": {}, "data": {pages.PLOTLY: figure}}
    cell = new_code_cell("show()", id="a")
    page = page_of(cell, kept=[("a", {"code": "show()", "outputs": [output]})])
    assert html_of(page.cells[-1]).count("</script>") == 1


def test_a_slider_is_a_picture_with_a_link_to_where_it_moves():
    picture = {"image/svg+xml": "<svg></svg>"}
    output = {"output_type": "display_data", "metadata": {}, "data": picture}
    cell = new_code_cell("explore(f, x=[1, 2])", id="a")
    page = page_of(cell, kept=[("a", {"code": cell.source, "outputs": [output]})])
    assert "<svg>" in html_of(page.cells[-1]) and "mybinder.org" in html_of(page.cells[-1])


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a site"):
        make_site.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_lesson_without_a_kept_run_is_named_with_what_makes_one(tmp_path, monkeypatch):
    monkeypatch.setattr(executions, "KEPT", tmp_path)
    with pytest.raises(ValueError, match=r"03_data_parallel \(ko\) has no kept run.*--execute 03"):
        executions.read("03_data_parallel", "ko")


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("name", LESSONS)
def test_a_kept_run_is_whole(name, lang):
    """Most cells have an output of today's code: an old recording is no picture of a lesson."""
    kept = executions.read(name, lang)
    path = catalog.notebook_path(catalog.course_root(), lang, name)
    changed = executions.changed(nbformat.read(path, as_version=4), kept)
    assert kept["machine"] and kept["date"] and len(kept["cells"]) > 15
    assert len(changed) <= len(kept["cells"]) / 3, f"run `make site ARGS='--execute {name[:2]}'`"
    outputs = [output for cell in kept["cells"].values() for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]


# ------------------------------------------------------------------------------------- the site


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "site"
    make_site.build(out)
    return out


class Links(HTMLParser):
    """What a page names (`href`, `src`), and what can be named in it (`id`)."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.named: set[str] = set()
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value:
                self.named.add(value)
            elif name == "id" and value:
                self.ids.add(value)


def test_every_link_within_the_site_leads_somewhere(site):
    own = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    links = {path: Links(path.read_text(encoding="utf-8")) for path in own}
    assert len(links) > 2 * (len(LESSONS) + 3)
    broken = []
    for path, page in links.items():
        for link in page.named:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append(f"{path.relative_to(site)}: {link}")
            elif target in links and unquote(parts.fragment) not in links[target].ids | {""}:
                broken.append(f"{path.relative_to(site)}: {link} (no such place)")
    assert not broken, broken[:20]


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_leads_to_colab_and_has_no_cell_that_installs(site, lang):
    text = (site / lang / "03_data_parallel.html").read_text(encoding="utf-8")
    assert f"blob/HEAD/notebooks/{lang}/03_data_parallel.ipynb" in text
    assert "find_spec" not in text and "num_ranks" in text


def test_the_site_is_small(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < SIZE


class Served(http.server.ThreadingHTTPServer):
    daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def url(site):
    with Served(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as chromium:
        yield chromium


@pytest.mark.browser
@pytest.mark.parametrize(("lang", "theme"), [("ko", "light"), ("en", "dark")])
def test_every_page_on_a_phone(chromium, url, lang, theme):
    """Pictures drawn, nothing wider than the screen, no error, and no other host asked."""
    context = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(browser.PATIENCE)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    figures = 0
    for name in ("index", "claims", *LESSONS):
        page.goto(f"{url}/{lang}/{name}.html")
        assert page.locator("html").get_attribute("lang") == lang
        assert page.locator("html").get_attribute("data-theme") == theme
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, name
        for place in page.locator("div.drawn-here").all()[:2]:
            place.scroll_into_view_if_needed()
            picture = place.locator(".main-svg").first
            picture.wait_for()
            # As wide as the text above it, and it was once as wide as its own margins.
            assert picture.bounding_box()["width"] > 280, name
            figures += 1
        for diagram in page.locator("pre.mermaid").all():
            diagram.locator("svg").wait_for()
            assert "Syntax error" not in diagram.inner_text()
    local = (url, "data:", "blob:")
    assert asked and not [address for address in asked if not address.startswith(local)]
    assert not said
    assert figures > len(LESSONS)
    context.close()


@pytest.mark.browser
def test_korean_is_found_by_a_word_without_its_ending(chromium, url):
    page = browser.new_page(chromium)
    page.goto(f"{url}/ko/search.html?q=통신")
    page.locator("#search mark", has_text=re.compile("^통신[을은이]")).first.wait_for()
    titles = page.locator("#search .pagefind-ui__result-title").all_inner_texts()
    assert titles and not [title for title in titles if "#" in title]
    addresses = page.locator("#search .pagefind-ui__result-link").all()
    assert all("/ko/" in (link.get_attribute("href") or "") for link in addresses)
    page.context.close()


@pytest.mark.browser
def test_the_other_language_is_one_click_away_on_the_same_page(chromium, url):
    page = browser.new_page(chromium)
    page.goto(f"{url}/ko/03_data_parallel.html")
    assert page.locator("#on-this-page").inner_text().strip() == "이 페이지"
    page.locator("a.language:visible").click()
    page.wait_for_url(f"{url}/en/03_data_parallel.html")
    assert page.locator("#on-this-page").inner_text().strip() == "On this page"
    page.goto(f"{url}/en/claims.html#B7")
    assert page.locator("#B7").count() == 1
    page.context.close()
