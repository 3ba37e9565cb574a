"""Sliders under which a picture answers at once."""

from dlcourse.explorer.film import Film
from dlcourse.explorer.sliders import Explorer, explore

__all__ = ["Explorer", "Film", "explore"]
