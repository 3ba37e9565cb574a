"""The ledger: what the memory of a rank is made of, at any moment.

    storages  one entry for each live storage, in a category (`dlcourse.measure.categories`)
    owners    parameters, gradients and optimizers: they say what a storage is
    series    the sums: now, at the peak, and over the time of a cell

Bytes are those of the storages. CUDA's allocator rounds each up to 512 bytes, so that
`torch.cuda.memory_allocated()` is a little larger. What operators allocate and free inside
themselves (workspaces) is not seen, nor what C++ code allocates and keeps (DDP's buckets are
seen when they are reduced).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import optim

from dlcourse.measure.categories import by_name
from dlcourse.measure.ledger.owners import Owners
from dlcourse.measure.ledger.series import Series
from dlcourse.measure.ledger.storages import Storages
from dlcourse.measure.ledger.sweep import Sweep


class Ledger:
    """The memory of this rank. Lives as long as the rank; one cell after another.

    All methods are for the recorded thread, except `snapshot`, which any thread may call.

    Attributes:
        storages, owners, series: the three parts; operators and hooks tell them what happens.
        in_backward: a backward pass runs, so gradients may have come to be without a hook.
        stepping: the optimizer that steps: its state is looked up before the total falls.
        unseen: set it when something ran that was not recorded: storages may have come to be.
    """

    def __init__(self) -> None:
        self.in_backward = False
        self.stepping: optim.Optimizer | None = None
        self.unseen = False
        self.series = Series()
        self.storages = Storages(self.series, self._before_fall)
        self.owners = Owners(self.storages)
        self._sweep = Sweep(self.storages, self.owners)

    def start(self, fake_mode: Any) -> None:
        """Before a cell: find what is live, and ask who owns it."""
        self.storages.fake_mode = fake_mode
        self.in_backward, self.stepping = False, None
        self._sweep.run(must=self.unseen)
        self.unseen = False
        self.owners.resolve()
        self.owners.hook_parameters(True)

    def begin(self, now_ns: int) -> None:
        """The cell starts: peaks and series begin at what is live now."""
        self.storages.bury()
        self.series.reset(now_ns)

    def finish(self, now_ns: int) -> dict[str, Any]:
        """After a cell: the memory part of a record."""
        self.in_backward, self.stepping = False, None
        self.owners.hook_parameters(False)
        self.owners.resolve()
        self._before_fall()
        return self.series.as_record(now_ns)

    def snapshot(self) -> dict[str, int]:
        """Live bytes by category, from any thread (may lag by one operation)."""
        return by_name(self.series.totals)

    def high_water(self) -> int:
        """The largest total since this was last asked."""
        self.storages.bury()
        return self.series.high_water()

    def _before_fall(self) -> None:
        """The total is at its highest just before it falls: look now at what it is made of."""
        series = self.series
        if self.stepping is not None:
            self._ask(self.owners.see_newest_state, self.stepping)
        if series.total > series.peak:
            if self.in_backward:
                self._ask(self.owners.see_gradients)
            series.note_peak()
        series.note_other()

    def _ask(self, question: Callable[..., None], *args: Any) -> None:
        self.storages.asking = True
        try:
            question(*args)
        finally:
            self.storages.asking = False
