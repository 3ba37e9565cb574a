"""What lesson 15 asks before it measures: the formula of each answer."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.figures.choosing import (
    first_stage_bytes,
    minutes_between_checkpoints,
    tensor_over_pipeline,
)

PREDICTIONS = {
    "15.first": Asked(first_stage_bytes, reason="reason.first", unit="bytes"),
    "15.interval": Asked(minutes_between_checkpoints, reason="reason.interval", unit="min"),
    "15.sides": Asked(tensor_over_pipeline, reason="reason.sides", unit="×"),
}
