"""What it costs to be one rank of thousands: seconds, memory, and how they grow with the ranks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from dlcourse.bench._options import parser_of
from dlcourse.plan.scale import scale

TARGETS = {"seconds": 20.0, "memory_gb": 1.5, "growth": 1.3}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 0 where all meet their targets, 1 where one does not."""
    parser = parser_of("scale", __doc__)
    parser.add_argument("--lesson", default="06_zero")
    parser.add_argument("--model", default="7b")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args(argv)
    growth, seconds, memory = [], [], []
    for _ in range(args.repeats):
        few, some, many = (
            scale(args.lesson, model=args.model, world=world) for world in (64, 1024, 4096)
        )
        growth.append(many.seconds / few.seconds)
        seconds.append(some.seconds)
        memory.append(max(few.peak_rss_bytes, some.peak_rss_bytes, many.peak_rss_bytes) / 1e9)
    found = {
        "seconds": (seconds, "s for one step as one of 1,024 ranks, the import of torch included"),
        "memory_gb": (memory, "GB of memory for it"),
        "growth": (growth, "times the seconds from 64 to 4,096 ranks"),
    }
    missed = 0
    for key, (values, words) in found.items():
        median = statistics.median(values)
        print(
            f"scale: {median:.2f} {words} ({min(values):.2f} to {max(values):.2f}), "
            f"target at most {TARGETS[key]}"
        )
        missed += median > TARGETS[key]
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
