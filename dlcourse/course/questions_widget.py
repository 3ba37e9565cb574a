"""The questions of a lesson in a front end, which checks the answers without the kernel."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from dlcourse.panel.widget import VIEW
from dlcourse.words.strings import t


def view_of(questions: list[dict[str, Any]]) -> dict[str, Any]:
    """The widget's part of a MIME bundle.

    questions: {"question", "options", "answer", "why", "where"} of each, in one language.
    """
    # The browser writes numbers and a heading into these.
    words = {
        "again": t("quiz.again"),
        "check": t("quiz.check"),
        "next": t("quiz.next"),
        "previous": t("quiz.previous"),
        "progress": t("quiz.progress", n="{n}", of="{of}"),
        "right": t("quiz.right"),
        "score": t("quiz.score", n="{n}", of="{of}"),
        "title": t("quiz.title", n=len(questions)),
        "where": t("quiz.where", heading="{heading}"),
        "wrong": t("quiz.wrong"),
    }
    view = widget_class()(words=words, questions=questions)
    return {VIEW: view._repr_mimebundle_()[0][VIEW]}


@cache
def widget_class() -> type:
    """The anywidget class, made at the first display."""
    import anywidget
    import traitlets

    here = files("dlcourse.course")

    class DlcourseQuiz(anywidget.AnyWidget):
        _esm = (here / "questions.js").read_text("utf-8")
        _css = (here / "questions.css").read_text("utf-8")
        words: Any = traitlets.Dict().tag(sync=True)
        questions: Any = traitlets.List().tag(sync=True)
        # What a reload of the page keeps: the question that is shown, the option chosen for each
        # (by position), and whether it was checked.
        at: Any = traitlets.Int(0).tag(sync=True)
        chosen: Any = traitlets.Dict().tag(sync=True)
        checked: Any = traitlets.Dict().tag(sync=True)

    return DlcourseQuiz
