"""The recorder of a rank: see `dlcourse.measure.recorder.recorder`."""

from dlcourse.measure.recorder.recorder import Recorder, live_bytes, mark_step

__all__ = ["Recorder", "live_bytes", "mark_step"]
