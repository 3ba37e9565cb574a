"""Pictures that answer a slider: drawn by the course's own formulas and simulators."""

from dlcourse.explore.picture import Picture, stacked_bars
from dlcourse.explore.sliders import Explorer, explore

__all__ = ["Explorer", "Picture", "explore", "stacked_bars"]
