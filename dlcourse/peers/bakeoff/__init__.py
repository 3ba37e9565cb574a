"""The bake-off: one GPT, one text, and the same training steps by every library, in one table.

    rows = run_bakeoff(ranks=4)                   # each library in ranks of its own
    show_bakeoff(rows, recorded_bakeoff())        # dlcourse.figures.bakeoff

What the user of each library writes stands in `data_parallel.py`, `sharded.py`, `layers.py` and
`ours.py`, a small function each, and its lines are counted. `contestants.py` lists them. Nothing
imports torch before a rank does, so a notebook's kernel may call all of it.
"""

from dlcourse.peers.bakeoff.contestants import CONTESTANTS, Contestant, missing
from dlcourse.peers.bakeoff.record import maintenance, recorded_bakeoff
from dlcourse.peers.bakeoff.run import TOLERANCE, run_bakeoff

__all__ = [
    "CONTESTANTS",
    "TOLERANCE",
    "Contestant",
    "maintenance",
    "missing",
    "recorded_bakeoff",
    "run_bakeoff",
]
