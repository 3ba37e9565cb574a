"""Sliders under which a picture changes at once, by mouse and by keyboard.

    explore(memory_of_a_step, micro_batches=[1, 2, 4, 8])

calls the function once for each position, as soon as the cell runs. So a slider answers within a
frame of the screen, also while the kernel is busy with a long cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

from dlcourse.figures.picture import Picture
from dlcourse.panel.widget import front_end_present, view_beside, widgets_installed
from dlcourse.words.strings import has_words, t

MAX_POSITIONS = 100  # of all sliders together; a picture has a few KB


class Explorer:
    """Sliders and their pictures; made by `explore`.

    Attributes:
        pictures: one for each combination of values, the last slider's changing fastest.
        start: the position of each slider that is shown first, and where there is no front end.
    """

    def __init__(
        self,
        names: Sequence[str],
        values: Sequence[Sequence[Any]],
        pictures: list[Picture],
        start: Sequence[int],
    ) -> None:
        self.names, self.values, self.pictures = list(names), list(values), pictures
        self.start = list(start)

    @property
    def picture(self) -> Picture:
        """The one that is shown first."""
        number = 0
        for position, values in zip(self.start, self.values, strict=True):
            number = number * len(values) + position
        return self.pictures[number]

    def __repr__(self) -> str:
        return self.picture.text

    def _repr_mimebundle_(self, **_: Any) -> Any:
        # A MIME bundle, with its metadata where there is a widget: IPython takes both forms.
        still = {"text/plain": self.picture.text, "image/svg+xml": self.picture.svg}
        if not (front_end_present() and widgets_installed()):
            return still
        sliders = [
            {"label": t(f"explore.{name}"), "values": [_shown(name, value) for value in values]}
            for name, values in zip(self.names, self.values, strict=True)
        ]
        view = widget_class()(
            sliders=sliders,
            pictures=[picture.svg for picture in self.pictures],
            positions=self.start,
        )
        return view_beside(view, still)


def _shown(name: str, value: Any) -> str:
    """A value as the slider says it: words of the area "explore" where it has some, else itself."""
    known = has_words(f"explore.{name}.{value}")
    return t(f"explore.{name}.{value}") if known else str(value)


def explore(
    draw: Callable[..., Picture],
    *,
    start: Mapping[str, Any] | None = None,
    **sliders: Iterable[Any],
) -> Explorer:
    """Sliders, and under them the picture that ``draw`` gives for their values.

    Args:
        draw: takes a value for each slider by name and returns a `Picture`.
        start: the value at which a slider stands first, by its name; the middle one otherwise.
        sliders: name and values of each; the names are words of the area "explore".

    Raises:
        ValueError: no slider, a slider without values, a start that is none of them, or more
            positions than fit a page; or values for which ``draw`` has no `Picture`.
    """
    for name, values in sliders.items():
        if not isinstance(values, Iterable):
            raise ValueError(f"{name}={values!r} is one value: give a list of them")
    given = {name: list(values) for name, values in sliders.items()}
    if not given or not all(given.values()):
        raise ValueError("explore needs a slider with at least one value: micro_batches=[1, 2, 4]")
    for name in given:
        t(f"explore.{name}")  # refuses a name without words here, in both kinds of front end
    first = {name: values[len(values) // 2] for name, values in given.items()} | dict(start or {})
    for name, value in first.items():
        if value not in given.get(name, ()):
            known = list(given.get(name, given))
            raise ValueError(f"start has {name}={value!r}: the sliders have {known}")
    combinations = list(product(*given.values()))
    if len(combinations) > MAX_POSITIONS:
        raise ValueError(
            f"{len(combinations)} positions, at most {MAX_POSITIONS}: give fewer values"
        )
    pictures = [_drawn(draw, dict(zip(given, values, strict=True))) for values in combinations]
    at = [values.index(first[name]) for name, values in given.items()]
    return Explorer(list(given), list(given.values()), pictures, at)


def _drawn(draw: Callable[..., Picture], values: Mapping[str, Any]) -> Picture:
    """The picture for some values. What the course's own pictures cannot show is refused in words.

    A reader who tries other values has nothing to mend in the code that draws; whoever has written
    a picture has.
    """
    ours = str(getattr(draw, "__module__", "")).startswith("dlcourse.")
    for name, value in values.items():
        if ours and isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"{name}={value!r}: give numbers from 0 on")
    try:
        picture = draw(**values)
    except ValueError:
        raise
    except Exception as error:
        if not ours:
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise ValueError(
            f"there is no picture for {given}: {type(error).__name__}, {error}"
        ) from None
    if not isinstance(picture, Picture):
        raise ValueError(f"draw gave {picture!r}: let it return a Picture")
    return picture


@cache
def widget_class() -> type:
    """The anywidget class, made at the first display."""
    import anywidget
    import traitlets

    here = files("dlcourse.explorer")

    class DlcourseExplorer(anywidget.AnyWidget):
        _esm = (here / "sliders.js").read_text("utf-8")
        _css = (here / "sliders.css").read_text("utf-8")
        sliders: Any = traitlets.List().tag(sync=True)
        pictures: Any = traitlets.List().tag(sync=True)
        positions: Any = traitlets.List().tag(sync=True)  # kept over a reload of the page

    return DlcourseExplorer
