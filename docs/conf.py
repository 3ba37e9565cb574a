"""Sphinx, for one language at a time: `make_site.py` says which (`-D language=ko`)."""

from __future__ import annotations

import sys
from pathlib import Path

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for a name below

project = "dlcourse"
extensions = ["myst_nb"]
templates_path = [str(HERE / "templates")]
html_static_path = [str(HERE / "static")]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
myst_heading_slug_func = "pages.anchor"
suppress_warnings = ["mystnb.unknown_mime_type"]

html_theme = "pydata_sphinx_theme"
html_title = "dlcourse"
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_copy_source = False
html_show_sourcelink = False
html_favicon = str(HERE / "static" / "favicon.svg")
html_sidebars = {"**": ["lessons"], "index": []}
html_theme_options = {
    "navbar_center": [],
    "navbar_end": ["language-switch", "theme-switcher"],
    "navbar_persistent": ["search-button"],
    "secondary_sidebar_items": ["page-toc"],
    "article_header_start": [],
    "footer_start": [],
    "footer_center": [],
    "footer_end": [],
    "show_prev_next": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def visit_math(translator: object, node: nodes.Element) -> None:
    """A formula as MathML, which browsers draw by themselves."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(latex2mathml.converter.convert(node.astext(), display=display))  # type: ignore[attr-defined]
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("config-inited", in_its_language)


html_math_renderer = "mathml"


def in_its_language(app: Sphinx, config: object) -> None:
    korean = app.config.language == "ko"
    app.config.nb_code_prompt_show = "코드 보기" if korean else "Show the code"
    app.config.nb_code_prompt_hide = "코드 접기" if korean else "Hide the code"
    other = ("en", "English") if korean else ("ko", "한국어")
    app.config.html_context = {
        "other": other,
        "default_mode": "auto",
        "on_this_page": "이 페이지" if korean else "On this page",
    }
