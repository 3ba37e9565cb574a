"""Show text, tables and source in a notebook, or print them elsewhere."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any


class Shown:
    """Base of results that have shown themselves: Jupyter adds nothing at the end of a cell."""

    def _ipython_display_(self) -> None:
        pass


def shell() -> Any:
    """The IPython shell that this code runs in, or None."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return get_ipython()


def display(bundle: dict[str, str]) -> None:
    """Show a MIME bundle in a notebook; print its ``text/plain`` elsewhere."""
    if not hasattr(shell(), "kernel"):
        print(bundle["text/plain"])
        return
    from IPython.display import display as show

    show(bundle, raw=True)


def say(text: str) -> None:
    """Show lines of text; backquotes and stars are Markdown in a notebook."""
    display({"text/plain": text, "text/markdown": text.replace("\n", "\n\n")})


def show_code(*parts: str, titles: Sequence[str] = ()) -> None:
    """Show Python sources, highlighted by the notebook itself, each under its title."""
    plain, marked = [], []
    for i, code in enumerate(parts):
        title = titles[i] if i < len(titles) else ""
        plain.append(f"# {title}\n{code}" if title else code)
        marked.append((f"`{title}`\n\n" if title else "") + f"````python\n{code}\n````")
    display({"text/plain": "\n\n".join(plain), "text/markdown": "\n\n".join(marked)})


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table without a style of its own: JupyterLab's looks right in light and dark."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
