"""Answers of every type and shape for every exercise: what does a check make of them?

    python tests/fuzz_exercises.py [id …]        all answers; some minutes
    python tests/fuzz_exercises.py --quiet       only those that are told badly

Used by ``test_exercises.py``, which runs a few of them. Checks run in ranks that are kept from one
check to the next, for the sake of time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from kept_ranks import KeptRanks

from dlcourse.course.exercises import Exercise, all_exercises, checking
from dlcourse.ranks import Ranks
from dlcourse.words import strings

# What the learner's function returns, whatever it is asked.
PLAIN = {
    "None": "None",
    "a string": "'abc'",
    "bytes": "b'abc'",
    "a truth value": "True",
    "NaN": "float('nan')",
    "infinity": "float('inf')",
    "a complex number": "1j",
    "a huge number": "10**5000",
    "an empty list": "[]",
    "a list of words": "['a', 'b', 'c', 'd']",
    "a list of None": "[None] * 4",
    "a list of lists": "[[1.5], [[2]], None]",
    "a pair of words": "('a', 'b')",
    "a dictionary": "{'a': 1}",
    "a generator": "(x for x in [1, 2])",
    "an endless generator": "__import__('itertools').count()",
    "a vector": "torch.ones(2)",
    "a number as a tensor": "torch.tensor(3.0)",
    "whole numbers as a tensor": "torch.ones(5, dtype=torch.int64)",
    "a complex tensor": "torch.ones(1, dtype=torch.complex64)",
    "an empty tensor": "torch.empty(0)",
    "a meta tensor": "torch.ones((), device='meta')",
    "a sparse tensor": "torch.ones(1).to_sparse()",
    "an array": "torch.ones(3).numpy()",
    "a function": "lambda: 1",
    "a class": "dict",
    "an object": "object()",
    "a large list": "[0] * 3_000_000",
    "a large tensor": "torch.zeros(30_000_000)",
    "a pair of tensors": "(torch.ones(2), torch.ones(2))",
    "a pair of NaN": "(float('nan'), float('nan'))",
    "a pair with a huge number": "(10**5000, -(10**5000))",
    "without return in some ranks": "None if __import__('os').environ['RANK'] == '0' else 1.0",
    "another type in each rank": "(1.0, 'a', None, [])[int(__import__('os').environ['RANK'])]",
}

# What is made of a right answer.
CHANGED = {
    "None": "None",
    "None in one rank": "None if __import__('os').environ['RANK'] == '0' else got",
    "a list of it": "[got, got]",
    "a word": "str(type(got))",
    "a meta tensor": "_each(got, lambda x: x.to('meta'))",
    "NaN": "_each(got, lambda x: x * float('nan'))",
    "as float64": "_each(got, lambda x: x.double())",
    "one axis more": "_each(got, lambda x: x[None])",
    "several numbers": "_each(got, lambda x: torch.stack([x, x]))",
    "sparse": "_each(got, lambda x: x.to_sparse())",
    "a generator": "(x for x in [got])",
    "NaN in the last rank": "_each(got, lambda x: x * float('nan'))"
    " if int(__import__('os').environ['RANK']) == world_size - 1 else got",
}

# Whole definitions.
WHOLE = {
    "no parameters": "def NAME():\n    return 1\n",
    "more parameters": "def NAME(a, b, c, d, e, f, g):\n    return 1\n",
    "parameters by name only": "def NAME(*, x=1, y=2):\n    return 1\n",
    "an empty class": "class NAME:\n    pass\n",
    "a class that takes anything": "class NAME:\n    def __init__(self, *args, **kw):\n"
    "        self.args = args\n",
    "yields": "def NAME(*args):\n    yield 1\n",
    "async": "async def NAME(*args):\n    return 1\n",
    "an exception without words": "class Odd(Exception):\n    def __str__(self):\n"
    "        raise ValueError('no words')\n\n\ndef NAME(*args):\n    raise Odd\n",
    "leaves": "import sys\n\n\ndef NAME(*args):\n    sys.exit(3)\n",
    "leaves in one rank": "import os\n\n\ndef NAME(*args):\n"
    "    if os.environ['RANK'] == '0':\n        os._exit(3)\n",
    "other tensors in each rank": "def NAME(*args):\n"
    "    dist.all_reduce(torch.ones(5 + rank, dtype=(torch.float64, torch.int32)[rank % 2]))\n",
    "other collectives in each rank": "def NAME(*args):\n    x = torch.ones(3)\n"
    "    dist.all_reduce(x) if rank else dist.broadcast(x, 0)\n    return x\n",
    "a collective is left out in one rank": "def NAME(*args):\n    x = torch.ones(3)\n"
    "    if rank:\n        dist.all_reduce(x)\n    return x\n",
    "has a strange repr": "class Odd:\n    def __repr__(self):\n        raise ValueError\n"
    "    __len__ = __bool__ = __eq__ = __float__ = __iter__ = __repr__\n    __hash__ = None\n"
    "    def __getattr__(self, name):\n        raise ValueError\n\n\n"
    "def NAME(*args):\n    return Odd()\n",
    "agrees with everything": "from unittest.mock import MagicMock\n\n\ndef NAME(*args):\n"
    "    return MagicMock()\n",
}

_EACH = """


def _each(got, change):
    if isinstance(got, list | tuple):
        return type(got)(_each(x, change) for x in got)
    if isinstance(got, bool | int | float):
        got = torch.tensor(got)
    return change(got) if isinstance(got, torch.Tensor) else None
"""


def answers(exercise: Exercise) -> Iterator[tuple[str, str]]:
    """(what it is, source) for every wrong answer that is tried."""
    names = exercise.names
    for label, value in PLAIN.items():
        bodies = [f"def {name}(*args, **kwargs):\n    return {value}\n" for name in names]
        yield f"returns {label}", "\n\n".join(["import torch\n", *bodies])
    for label, source in WHOLE.items():
        yield label, "\n\n".join(source.replace("NAME", name) for name in names)
    for label, value in CHANGED.items():
        kernel = "import torch\nworld_size = 1\n" if exercise.where == "kernel" else ""
        yield f"right, but {label}", kernel + exercise.solution + _EACH + _changed(names[0], value)


def _changed(name: str, value: str) -> str:
    return (
        f"\n\n_right = {name}\nif isinstance(_right, type):\n"
        f"    class {name}(_right):\n        pass\n"
        "    def _around(method):\n        def ask(self, *args):\n"
        f"            got = method(self, *args)\n            return {value}\n        return ask\n"
        "    for _n, _m in list(vars(_right).items()):\n"
        "        if callable(_m) and not _n.startswith('_'):\n"
        f"            setattr({name}, _n, _around(_m))\n"
        f"else:\n    def {name}(*args, **kwargs):\n        got = _right(*args, **kwargs)\n"
        f"        return {value}\n"
    )


NOISE = ("Traceback", "terminate called", "AnswerError", "check.py", "packing.py", "judge.py")


def faults(exercise: Exercise, label: str, text: str, passed: bool, output: str) -> list[str]:
    """What is wrong with how an answer was told."""
    found = []
    nothing = exercise.id in RETURN_NOTHING and label.startswith("right, but")
    if passed and not nothing and label not in RIGHT:
        found.append("passes")
    raised = any(word in label for word in RAISES) or exercise.id in CHAINED
    for noise in NOISE:
        if noise in text and not (raised and noise == "Traceback"):
            found.append(f"shows {noise!r}")
    if any(word in output for word in NOISE[:2]):
        found.append("noise in the output")
    if len(text) > 6000:
        found.append("long")
    return found


# Exercises of which the returned value does not count.
RETURN_NOTHING = (
    *("03.find_the_bug", "03.overlap", "04.all_reduces"),
    *("08.gradients", "09.ddp", "12.leave", "14.wrap"),
)
# A number is a number also in these forms; where a tensor is asked for they do not pass.
RIGHT = ("right, but as float64", "right, but one axis more")
# Answers with an exception of the learner's own, which is shown with its lines; and exercises
# in which the learner's code is handed what it gave before.
CHAINED = ("06.cut", "06.peak", "11.function")
RAISES = ("an exception", "leaves", "strange repr")


def main() -> None:
    import contextlib
    import io

    import dlcourse.ranks

    strings.set_language("en")
    quiet = "--quiet" in sys.argv
    chosen = [a for a in sys.argv[1:] if not a.startswith("-")]
    only = [a[2:] for a in sys.argv[1:] if a.startswith("--") and a != "--quiet"]
    learner = Ranks(1, default=False)
    kept = KeptRanks()
    real = dlcourse.ranks.Ranks
    bad: dict[str, list[str]] = {}
    for exercise in all_exercises():
        if chosen and not any(exercise.id.startswith(c) for c in chosen):
            continue
        began = time.monotonic()
        for label, source in answers(exercise):
            if only and not any(o in label for o in only):
                continue
            scope: dict[str, Any] = {"__name__": "__main__"}
            output = io.StringIO()
            object.__setattr__(exercise, "time_limit", min(exercise.time_limit, 20.0))
            try:
                with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                    if exercise.where == "kernel":
                        exec(source, scope)
                        checking.kernel_names = lambda scope=scope: scope
                    else:
                        learner.cell(source, record=False)
                    dlcourse.ranks.Ranks = kept
                    result = checking.check(exercise.id, pool=learner)
                text, passed = result.text, result.passed
                printed = output.getvalue().replace(text, "")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                text, passed, printed = f"{type(error).__name__}: {error}", False, ""
                wrong = ["check() raises"]
            else:
                wrong = faults(exercise, label, text, passed, printed)
            finally:
                dlcourse.ranks.Ranks = real
            if wrong:
                bad.setdefault(exercise.id, []).append(f"{label}: {', '.join(wrong)}")
            if not quiet or wrong:
                print(f"--- {exercise.id} {label} {wrong or ''}\n{text}\n{printed}", flush=True)
        print(f"=== {exercise.id}: {time.monotonic() - began:.0f} s", flush=True)
    kept.end()
    learner.stop()
    print(f"\n{sum(map(len, bad.values()))} answers are told badly")
    for id, lines in bad.items():
        print(f"{id}: {len(lines)}")
        for line in lines:
            print(f"    {line}")


if __name__ == "__main__":
    main()
