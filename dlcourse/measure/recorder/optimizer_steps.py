"""Optimizer steps under the dispatch mode: most of them need no watching.

The mode steps aside while an optimizer of torch's own updates parameters, once two such steps
were watched: what they need for a moment is remembered and added to the peak.
"""

from __future__ import annotations

import weakref

from torch import optim

from dlcourse.measure.ledger import Ledger
from dlcourse.measure.recorder.dispatch_mode import Watch

# Optimizers whose step leaves nothing new behind, does no matrix product and no collective.
_QUIET_OPTIMIZERS = frozenset(
    getattr(optim, name)
    for name in (
        *("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam"),
        *("RMSprop", "Adagrad", "Adadelta", "Rprop", "ASGD"),
    )
)


class OptimizerSteps:
    """Watches steps, and skips those that bring nothing new."""

    def __init__(self, watch: Watch) -> None:
        self._watch, self._ledger = watch, watch.ledger
        self.learnt: weakref.WeakKeyDictionary[optim.Optimizer, StepMemory]
        self.learnt = weakref.WeakKeyDictionary()

    def before(self, optimizer: optim.Optimizer, closure: bool) -> None:
        """A step begins; `closure`: it calls the learner's code."""
        self._watch.resume()
        self._watch.stepping = True
        self._ledger.owners.see_optimizer(optimizer)
        self._ledger.stepping = optimizer
        learnt = self.learnt.setdefault(optimizer, StepMemory())
        if learnt.steady(optimizer) and not closure and self._watch.pause():
            self._ledger.series.note_transient(learnt.extra)
        else:
            learnt.begin(self._ledger)

    def after(self, optimizer: optim.Optimizer) -> None:
        """The step has ended."""
        self._watch.resume()
        self._watch.stepping = False
        self._ledger.owners.see_state(optimizer)
        self._ledger.stepping = None
        self.learnt.setdefault(optimizer, StepMemory()).end(optimizer, self._ledger)


class StepMemory:
    """What an optimizer's step needs for a moment, learnt from steps that were watched.

    Attributes:
        extra: bytes that a step has on top of what it leaves behind.
    """

    def __init__(self) -> None:
        self.extra = 0
        self._states: int | None = None
        self._learnt = self._watching = False

    def steady(self, optimizer: optim.Optimizer) -> bool:
        """Whether the next step will bring nothing new."""
        return (
            type(optimizer) in _QUIET_OPTIMIZERS
            and self._learnt
            and len(optimizer.state) == self._states
        )

    def begin(self, ledger: Ledger) -> None:
        """A watched step begins."""
        self._watching = True
        ledger.high_water()

    def end(self, optimizer: optim.Optimizer, ledger: Ledger) -> None:
        """A step has ended, watched or not."""
        if not self._watching:
            return
        self._watching = False
        # A step in which state came to be says little about those after it.
        self._learnt = len(optimizer.state) == self._states
        self._states = len(optimizer.state)
        self.extra = max(0, ledger.high_water() - ledger.series.total)
