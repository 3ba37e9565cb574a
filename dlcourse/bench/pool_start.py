"""Time from nothing to four ranks that have done an all-reduce, over that of `import torch`.

Each is measured in a process of its own, one after the other in turn. Beside it: a warm start (the
agent is there already), a cell's round trip, the ranks' memory, and ipyparallel where it is
installed.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence

from dlcourse.bench._options import parser_of

TARGETS = {"cold": 2.5, "warm": 0.7, "cell_ms": 15.0, "pss_mb": 400.0}

IMPORT = """
import time
start = time.perf_counter()
import torch
print(time.perf_counter() - start)
"""

COLD = """
import json, statistics, time
start = time.perf_counter()
from dlcourse import Ranks
ranks = Ranks({ranks})
ranks.cell("dist.all_reduce(torch.ones(1))", record=False)
found = {{"cold": time.perf_counter() - start}}
from pathlib import Path
import psutil
def pss(pid):
    lines = Path(f"/proc/{{pid}}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
family = psutil.Process().children(recursive=True)
if Path("/proc/self/smaps_rollup").exists():
    found["pss_mb"] = sum(pss(process.pid) for process in family) / 1e6
cells = []
for _ in range(50):
    start = time.perf_counter()
    ranks.cell("1 + 1")
    cells.append(1e3 * (time.perf_counter() - start))
found["cell_ms"] = statistics.median(cells)
start = time.perf_counter()
ranks.restart()
ranks.cell("dist.all_reduce(torch.ones(1))", record=False)
found["warm"] = time.perf_counter() - start
print(json.dumps(found))
"""

IPYPARALLEL = """
import time
start = time.perf_counter()
import ipyparallel, logging
cluster = ipyparallel.Cluster(n={ranks}, log_level=logging.ERROR)
view = cluster.start_and_connect_sync()[:]
view.execute("import torch", block=True)
print(time.perf_counter() - start)
cluster.stop_cluster_sync()
"""


def run(script: str) -> str:
    """The last line that a fresh Python prints."""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return done.stdout.splitlines()[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures; 0 where all meet their targets, 1 where one does not."""
    parser = parser_of("pool_start", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    run(IMPORT)  # fills the file cache
    rows = []
    for _ in range(args.repeats):
        torch_s = float(run(IMPORT))
        found = json.loads(run(COLD.format(ranks=args.ranks)))
        rows.append(found | {"cold": found["cold"] / torch_s, "warm": found["warm"] / torch_s})
        rows[-1]["torch_s"] = torch_s
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    words = {
        "cold": "times `import torch`, from nothing to the first all-reduce",
        "warm": "times `import torch`, for a restart of the ranks and the first all-reduce",
        "cell_ms": "ms for a recorded cell of 1 + 1 in all ranks",
        "pss_mb": "MB of memory (PSS) of agent, launcher and ranks together",
    }
    print(f"{args.ranks} ranks, {args.repeats} runs; import torch: {median['torch_s']:.2f} s")
    missed = 0
    for key, target in TARGETS.items():
        if key in median:
            low, high = min(r[key] for r in rows), max(r[key] for r in rows)
            print(
                f"start: {median[key]:.2f} {words[key]} ({low:.2f} to {high:.2f}), "
                f"target at most {target}"
            )
            missed += median[key] > target
    if importlib.util.find_spec("ipyparallel"):
        seconds = float(run(IPYPARALLEL.format(ranks=args.ranks)))
        print(f"start: ipyparallel {seconds / median['torch_s']:.2f} times `import torch`")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
