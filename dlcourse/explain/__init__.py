"""What a DeepSpeed JSON says: every key in words, what follows from it, and the same by hand.

explanation = explain("ds.json", world_size=4)
explanation                       # a table in a notebook, text in a terminal
explanation.findings              # kind, path, value, default, text
explanation.code                  # the same training in this course's code, for %%ranks

source.py       a path, pasted text or a dict; line and column of what is malformed
keys.py         the keys of a version: of the installed one, else keys.json
walk.py         each key: what it does, or that it is unknown, deprecated, ignored
implied.py      what follows: batch, clipping, memory, loss scale
conflicts.py    what contradicts itself
by_hand.py      the same in this course's code; learning_rate.py, its schedules
explanation.py  what is shown; command.py: ``dlcourse explain``

``peers/deepspeed_keys.py`` makes the table of keys by asking DeepSpeed itself, and
``peers/deepspeed_installed.py`` asks it in a process of its own what it does with a configuration.
"""

from dlcourse.explain.explanation import Explanation, explain
from dlcourse.explain.finding import KINDS, Finding

__all__ = ["KINDS", "Explanation", "Finding", "explain"]
