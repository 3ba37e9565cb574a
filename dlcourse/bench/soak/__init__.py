"""Reliability as figures: random faults, again and again, each of which must end in success or in
an error of the course's own, within its limit, with nothing left.

`make soak` does all of it; it goes on where it was interrupted. Without options it is a tenth of a
percent, in small cells instead of lessons: one trial of each scenario, for `make test`.

- trial: a scenario, one trial, and what is looked for afterwards
- faults: kills and interrupts at random moments of a run in a kernel
- surroundings: a full disk, little shared memory, no name, IPv6 alone, a clock that jumps
- long_runs: many pools in one kernel, strangers' noise at a port, slow cells on busy cores
- nodes: machines that are lost
- cells: what is run, where it is no lesson
- report: the record of the trials, and the figures of it
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dlcourse.bench._options import parser_of
from dlcourse.bench.soak import faults, long_runs, nodes
from dlcourse.bench.soak import surroundings as around
from dlcourse.bench.soak.report import Record, table, write
from dlcourse.bench.soak.trial import Scenario, fine, run_trial
from dlcourse.course.run import interruptible

SCENARIOS = (
    Scenario("kills", 300, "kills", 60, faults.kill),
    Scenario("interrupts", 300, "interrupts", 60, faults.interrupt),
    Scenario("kernel kills", 100, "kernels", 30, faults.kill_kernel),
    Scenario("pools", 1000, "pools in one kernel", 20, long_runs.pools, each=1000),
    Scenario("nodes lost", 50, "machines", 60, nodes.lose_a_node, needs=nodes.needs),
    Scenario("disk full", 20, "runs", 300, around.full_disk, needs=around.disk_needs),
    Scenario("64 MB of /dev/shm", 16, "runs", 600, around.small_shm, needs=around.disk_needs),
    Scenario("clock jumps", 16, "runs", 600, around.clock_jumps, needs=around.clock_needs),
    Scenario("host name unknown", 16, "runs", 600, around.no_name, needs=around.name_needs),
    Scenario("IPv6 only", 10, "runs", 300, around.ipv6, needs=around.ipv6_needs),
    Scenario("malformed frames", 100_000, "connections", 1, long_runs.frames, each=100_000),
    Scenario("busy cores", 1000, "cells", 60, long_runs.busy_cores, each=20),
)


def trials(scenario: Scenario, share: float) -> Iterator[tuple[int, int]]:
    """(number, size) of each trial of a share of a scenario."""
    units = max(1, math.ceil(scenario.count * share))
    for number in range(math.ceil(units / scenario.each)):
        yield number, min(scenario.each, units - number * scenario.each)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is not yet done; 0 where all ended as it should, 1 where not, 130 interrupted."""
    parser = parser_of("soak", __doc__)
    parser.add_argument("--share", type=float, default=0.001, help="of the whole (default: 0.001)")
    parser.add_argument("--lessons", action="store_true", help="whole lessons, not small cells")
    parser.add_argument("--only", action="append", metavar="SCENARIO", help="may be repeated")
    parser.add_argument("--minutes", type=float, help="begin no trial after so long")
    parser.add_argument(
        "--again", action="store_true", help="also those that did not end as they should"
    )
    parser.add_argument("--out", default="results/soak", help="folder of the record")
    parser.add_argument("--record", metavar="FILE", help="where the figures go as well")
    args = parser.parse_args(argv)
    chosen = [s for s in SCENARIOS if args.only is None or s.name in args.only]
    if unknown := set(args.only or ()) - {s.name for s in SCENARIOS}:
        names = ", ".join(repr(s.name) for s in SCENARIOS)
        raise ValueError(f"only={min(unknown)!r}: choose from {names}")
    if not 0 < args.share <= 1:
        raise ValueError(f"share={args.share}: give a number above 0, at most 1")
    record = Record(Path(args.out), lessons=args.lessons)
    record.skipped = {s.name: why for s in chosen if (why := s.needs())}
    for name, why in record.skipped.items():
        print(f"soak: {name}: left out, {why}", file=sys.stderr)
    todo = [
        (scenario, number, size)
        for scenario in chosen
        if scenario.name not in record.skipped
        for number, size in trials(scenario, args.share)
        if not record.has(scenario.name, number, size, as_it_should=args.again)
    ]
    status = _run(todo, record, args.minutes)
    print(table(record, SCENARIOS))
    write(record, SCENARIOS, Path(args.out) / "report.json")
    if args.record:
        write(record, SCENARIOS, Path(args.record))
    return status or int(any(not fine(line) for line in record.lines))


def _run(todo: list[tuple[Scenario, int, int]], record: Record, minutes: float | None) -> int:
    """Do the trials; 130 where it was interrupted."""
    from tqdm import tqdm

    end = math.inf if minutes is None else time.monotonic() + 60 * minutes
    try:
        with interruptible(), tqdm(todo, desc="soak", unit="trial", disable=None) as bar:
            for scenario, number, size in bar:
                if time.monotonic() > end:
                    break
                bar.set_postfix_str(f"{scenario.name} {number}")
                line = run_trial(scenario, number, size, record.lessons)
                record.add(line)
                if not fine(line) or bar.disable:
                    tqdm.write(_said(line), file=sys.stderr)
    except KeyboardInterrupt:
        print("soak: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _said(line: dict) -> str:
    left = [*line["left_running"], *line["left_files"]]
    words = f"{line['scenario']} {line['trial']}: {line['ending']}, {line['seconds']} s: "
    return words + line["said"][:160] + (f"; left: {', '.join(left)[:200]}" if left else "")
