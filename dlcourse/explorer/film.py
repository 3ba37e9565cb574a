"""A picture that moves while ranks train, and the same steps under a slider afterwards.

    film = Film(experts_by_text)         # shows the newest frame as soon as a rank has written it
    explore(film.at, step=film.steps)    # all frames, once the ranks are ready

A rank writes frames by `dlcourse.measure.frames.write_frame(film.path, step=..., ...)`.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from dlcourse.explorer.sliders import widget_class
from dlcourse.figures.picture import Picture, sentence
from dlcourse.measure.frames import Frame, read_frames
from dlcourse.panel.widget import front_end_present, view_beside, widgets_installed
from dlcourse.ranks.directories import new_directory, remove
from dlcourse.words.strings import t

INTERVAL_S = 0.2  # between two looks at the file


class Film:
    """Follows the frames of one file.

    Args:
        draw: makes a picture of a frame.

    Attributes:
        path: where the ranks write.
    """

    def __init__(self, draw: Callable[[Frame], Picture]) -> None:
        self.draw = draw
        folder = new_directory("dlcourse-film-")
        weakref.finalize(self, remove, folder)
        self.path = str(folder / "frames.jsonl")
        self._view: Any = None
        self._shown: Frame | None = None

    @property
    def steps(self) -> list[int]:
        """Of the frames that there are; a ``ValueError`` where there are none yet."""
        steps = [frame["step"] for frame in read_frames(self.path)]
        if not steps:
            raise ValueError("the film has no frame yet: run the cell that trains first")
        return steps

    def at(self, step: int) -> Picture:
        """The picture of one step; a ``ValueError`` where there is no frame of it."""
        frames = {frame["step"]: frame for frame in read_frames(self.path)}
        if step not in frames:
            known = ", ".join(map(str, self.steps))
            raise ValueError(f"step={step!r} has no frame: there are {known}")
        return self.draw(frames[step])

    @property
    def picture(self) -> Picture:
        """Of the newest frame."""
        frames = read_frames(self.path)
        return self.draw(frames[-1]) if frames else sentence(t("explore.film"))

    def __repr__(self) -> str:
        return self.picture.text

    def _repr_mimebundle_(self, **_: Any) -> Any:
        # A MIME bundle, with its metadata where there is a widget: IPython takes both forms.
        picture = self.picture
        still = {"text/plain": picture.text, "image/svg+xml": picture.svg}
        if not (front_end_present() and widgets_installed()):
            return still
        if self._view is None:
            self._view = widget_class()(sliders=[], pictures=[picture.svg], positions=[])
            follow = threading.Thread(target=_follow, args=(weakref.ref(self),), daemon=True)
            follow.start()
        return view_beside(self._view, still)

    def look(self) -> None:
        """Show the newest frame, if it is not shown already."""
        frames = read_frames(self.path)
        if frames and frames[-1] != self._shown:
            self._shown = frames[-1]
            try:
                picture = self.draw(self._shown)
            except Exception as error:  # a frame that cannot be drawn does not end the film
                picture = sentence(f"{type(error).__name__}: {error}")
            self._view.pictures = [picture.svg]


def _follow(film: weakref.ref[Film]) -> None:
    """As long as somebody holds the film: the cell that trains may be run again."""
    while (one := film()) is not None:
        one.look()
        del one
        time.sleep(INTERVAL_S)
