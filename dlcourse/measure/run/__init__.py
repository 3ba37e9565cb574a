"""What was measured in one cell: see `dlcourse.measure.run.run`."""

from dlcourse.measure.run.run import Run

__all__ = ["Run"]
