"""In place of `Ranks`: ranks for checks that are used again, as long as a check left them alone.

Fresh ranks for each check, as a learner has them, are safe whatever the check does; the suite has
some hundred checks, and most change nothing. A pool goes on to the next check only if

- every rank came to an end by itself: none was lost, interrupted or cut off;
- the ranks called equally many collectives, and no message from point to point may be left over
  (the answer's source neither sends nor receives);
- no rank is other than it was before: functions and classes of torch and the course, hooks, groups,
  keys in the store, threads, children, modules of the learner's, settings, environment, names of
  `__main__`.

Otherwise it is stopped and the next check begins with a new one. Of an answer that sends or
receives this is known before (`expect`): it gets ranks of its own, and the kept ones stay.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any

import cloudpickle

from dlcourse.ranks import RankError, Ranks

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the ranks cannot import it

# Modules that a check might change for the next one
_WATCHED = re.compile(
    r"builtins|os|time|random|dlcourse\..*|torch|torch\.(autograd|random|_tensor|optim\..*)"
    r"|torch\.nn\.(functional|modules\..*|parallel\.distributed|utils\..*)"
    r"|torch\.distributed(\.distributed_c10d)?|torch\.utils\.checkpoint"
)


class KeptRanks:
    """One pool for each size. Called as `Ranks` is; `end` stops them."""

    def __init__(self) -> None:
        self.pools: dict[int, tuple[Any, list[Any]]] = {}  # with what its ranks were like at first
        self.make = Ranks
        self.started = 0
        self.alone = False

    def expect(self, source: str) -> None:
        """What the next check will run."""
        self.alone = _sends(source)

    def __call__(self, size: int, **options: Any) -> Any:
        if self.alone:
            return self.make(size, **options)
        if size in self.pools and self.pools[size][0].state in ("lost", "stopped"):
            self.drop(size)
        if size not in self.pools:
            self.started += 1
            pool = self.make(size, **options)
            self.pools[size] = pool, pool.run(condition, [*sys.path], True)
        return _Lent(self, size)

    def drop(self, size: int) -> None:
        self.pools.pop(size)[0].stop()

    def end(self) -> None:
        for size in [*self.pools]:
            self.drop(size)


class _Lent:
    """A kept pool during one check."""

    def __init__(self, kept: KeptRanks, size: int) -> None:
        self.kept, self.size = kept, size
        self.pool, self.before = kept.pools[size]
        self.spoilt = False

    def __enter__(self) -> _Lent:
        return self

    def run(self, judge: Callable[..., Any], packed: dict[str, Any], *args: Any) -> Any:
        source = "".join(line for lines in packed["sources"].values() for line in lines)
        self.spoilt = _sends(source)
        return self.pool.run(judge, packed, *args)

    def __exit__(self, _: Any, error: BaseException | None, *__: Any) -> None:
        if self.spoilt or not _by_itself(error, self.size) or not self._as_before():
            self.kept.drop(self.size)

    def _as_before(self) -> bool:
        now = self.pool.run(condition, [*sys.path], False)
        called = {calls for calls, _ in now}
        same = all(was == state for (_, was), (_, state) in zip(self.before, now, strict=True))
        return len(called) == 1 and same

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pool, name)


def _sends(source: str) -> bool:
    return "send" in source or "recv" in source


def _by_itself(error: BaseException | None, size: int) -> bool:
    """Whether the check ended in every rank without another's doing."""
    if error is None:
        return True
    if not isinstance(error, RankError) or len(error.failures) != size:
        return False
    failures = error.failures.values()
    return not any(f["interrupted"] or f["cut"] or f["transport"] for f in failures)


def condition(paths: list[str], first: bool) -> tuple[int, dict[str, Any]]:
    """In a rank: how many collectives were called, and all that a check must leave as it was."""
    import gc
    import importlib
    import os
    import pkgutil
    import random
    import signal
    import threading

    import psutil
    import torch
    import torch.distributed as dist

    from dlcourse.course.exercises.expectations import gathered
    from dlcourse.course.exercises.packing import is_learners

    if first:  # what a check does once, it does before
        sys.path += [path for path in [os.getcwd(), *paths] if path not in sys.path]
        sys.dont_write_bytecode = True
        gathered(None)
        torch.manual_seed(0)
        torch.set_num_threads(1)
        importlib.import_module("torch.nn.parallel.distributed")
        importlib.import_module("torch.utils.checkpoint")
        for part in ("collectives", "formulas", "measure", "models", "parallel", "training"):
            package = importlib.import_module(f"dlcourse.{part}")
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        for optimizer in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
            optimizer([torch.zeros(1, requires_grad=True)])  # the first wraps its class's step
        gc.freeze()  # from here on only what checks make is looked through
    gc.collect()  # what the last answer left is not in the next one's ledger

    held: dict[tuple[str, str], int] = {}
    for module in [m for name, m in sys.modules.items() if _WATCHED.fullmatch(name)]:
        spaces = {module.__name__: vars(module)}
        for value in vars(module).values():
            if issubclass(type(value), type) and value.__module__ == module.__name__:
                spaces[f"{module.__name__}.{value.__qualname__}"] = vars(value)
        for space, names in spaces.items():
            held |= {(space, name): id(value) for name, value in names.items() if callable(value)}
    hooks = vars(torch.nn.modules.module)
    state = {
        "functions": hash(frozenset(held.items())),
        "keys": dist.distributed_c10d._get_default_store().num_keys(),
        "hooks": {k: len(v) for k, v in hooks.items() if k.startswith("_global") and v},
        "groups": sorted(dist.distributed_c10d._world.pg_names.values()),
        "world": id(dist.group.WORLD),
        "threads": threading.active_count(),
        "children": len(psutil.Process().children()),
        "learners": sorted(
            name
            for name, module in [*sys.modules.items()]
            if name != "__main__"
            and isinstance(getattr(module, "__file__", None), str)
            and is_learners(module.__file__)
        ),
        "names": {k: id(v) for k, v in vars(sys.modules["__main__"]).items()},
        "paths": [*sys.path],
        "folder": os.getcwd(),
        "environment": {**os.environ},
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)].__repr__(),
        "random": hash(random.getstate()),
        "settings": (
            str(torch.get_default_dtype()),
            str(torch.get_default_device()),
            torch.get_num_threads(),
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_anomaly_enabled(),
            gc.isenabled(),
            sys.gettrace() is None and sys.getprofile() is None,
            sys.getrecursionlimit(),
        ),
    }
    return dist.group.WORLD._get_sequence_number_for_group(), state
