"""What lesson 03 asks before it measures: the formula of each answer, for four ranks."""

from __future__ import annotations

from dlcourse.course.predictions import Asked
from dlcourse.formulas.overlap import Job, best_bucket, overlapped_seconds
from dlcourse.formulas.parameters import num_parameters
from dlcourse.formulas.sizes import GPTConfig
from dlcourse.formulas.traffic import wire_bytes


def bytes_of_a_step() -> float:
    """2 (p - 1) / p of the gradients, 4 bytes a parameter."""
    return wire_bytes("all_reduce", 4 * num_parameters(GPTConfig()), 4)


def best_layers_in_a_bucket() -> int:
    """Latencies against what is left when backward has ended."""
    return best_bucket(Job(), 4)


def times_as_fast_with_a_quarter_each() -> float:
    """One rank with the whole batch over four ranks with a quarter of it each."""
    job = Job()
    return job.alone() / overlapped_seconds(job.shared(1 / 4), best_bucket(job, 4), 4)


PREDICTIONS = {
    "03.bytes": Asked(bytes_of_a_step, reason="reason.bytes", unit="bytes"),
    "03.bucket": Asked(best_layers_in_a_bucket, reason="reason.bucket"),
    "03.strong": Asked(times_as_fast_with_a_quarter_each, reason="reason.strong", unit="×"),
}
