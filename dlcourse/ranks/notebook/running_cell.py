"""A cell while it runs: what has come back from the ranks, and what to do when something does not.

It waits for all ranks, notices a failure, a death or a deadlock, and gets the ranks that still run
back. What is said about it is in `verdict.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from dlcourse import machine
from dlcourse.ranks.diagnosis.deadlock import find_deadlock
from dlcourse.ranks.diagnosis.state import RankState
from dlcourse.ranks.notebook.output import Output
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.words.strings import Both, both, t

GRACE = 2.0  # seconds a rank has to end after an interrupt
AFTER_FAILURE = 1.0  # seconds the others have to end after one rank failed
AFTER_CUT = 5.0  # seconds in which a wait whose connections were cut ends, on a busy machine too
LOOK = 0.5  # seconds that a rank has to say where it stands
CHECK = 1.0  # seconds between looks at ranks that do not end
TICK = 0.1  # seconds between calls of `tick`
MOST = 12.0  # times as long as the above on a crowded machine, before a rank is given up


def patience(seconds: float) -> float:
    """So many seconds, or more where ranks wait their turn for a core.

    A rank that is given up loses its variables. In a classroom of twenty learners on two cores a
    rank was without a core for longer than `AFTER_CUT`: data/classroom.json.
    """
    return seconds * min(MOST, machine.crowding())


class RunningCell:
    """One cell that runs: what has come back, and what to do when something does not."""

    def __init__(
        self,
        processes: RankProcesses,
        number: int,
        chosen: list[int],
        output: Output,
        *,
        tick: Callable[[RunningCell], None],
    ) -> None:
        """tick: called ten times a second while the cell runs."""
        self.processes, self.number, self.chosen, self.output = processes, number, chosen, output
        self.tick = tick
        self.done: dict[int, dict[str, Any]] = {}
        self.samples: dict[int, dict[str, Any]] = {}
        self.where: dict[int, dict[str, Any]] = {}
        self.headline: Both | None = None
        self.interrupted = False
        self.started = time.monotonic()
        self.life = processes.life

    # -- waiting --------------------------------------------------------------------------------

    def pending(self) -> list[int]:
        return [r for r in self.chosen if r not in self.done and r not in self.processes.dead]

    def take(self, rank: int | None, message: dict[str, Any]) -> None:
        """Note a message that is about this cell."""
        kind = message["kind"]
        if kind == "done" and message["id"] == self.number and rank is not None:
            self.done[rank] = message
        elif kind == "sample" and rank is not None:
            self.samples[rank] = message["sample"]
        elif kind == "output":
            self.output.feed(message["rank"], message["stream"], message["data"])

    def wait(self) -> None:
        """Until every rank has ended the cell, or never will."""
        next_check = self.started + CHECK
        next_tick = self.started + TICK
        failed_at: float | None = None
        before: list[RankState] = []
        while self.pending():
            self.processes.receive(0.05)
            now = time.monotonic()
            if self.ended_by_another():
                self.headline = both(lambda: t("ranks.stopped_meanwhile"))
                return
            if self.processes.dead:
                self.look()
                return
            if now >= next_tick:
                next_tick = now + TICK
                self.tick(self)
            if not self.processes.alive():
                self.headline = both(lambda: t("ranks.watcher_ended"))
                return
            if failed_at is None and any("error" in d for d in self.done.values()):
                failed_at = now
            if failed_at is not None and now > failed_at + patience(AFTER_FAILURE):
                self.release()
                return
            if now >= next_check and self.pending():
                next_check = now + CHECK
                states = self.states()
                self._note_deadlock(before, states)
                if self.headline is not None:
                    self.release()
                    return
                before = states

    def ended_by_another(self) -> bool:
        """Whether another thread, such as a timer's, has stopped the ranks or restarted them."""
        return self.processes.state == "stopped" or self.processes.life != self.life

    def wait_for_output(self) -> None:
        """What a rank printed may arrive after its result; wait for it, but not for long."""
        limit = time.monotonic() + 1.0
        while time.monotonic() < limit:
            if all(self.output.ended(r) for r in self.chosen if r in self.done):
                return
            self.processes.receive(0.02)

    def interrupt(self) -> None:
        """The learner pressed stop: ask the ranks to end, and end the waits that cannot."""
        self.interrupted = True
        try:
            self.release()
            self.wait_for_output()
        except KeyboardInterrupt:  # pressed again: do not be gentle
            pass

    def release(self) -> None:
        """Get the ranks that still run back: interrupt them, then cut their connections."""
        before = self.states()
        if self.headline is None and self.pending():
            self._note_deadlock(before, self.states())
        for rank in self.pending():
            self.processes.send(rank, "interrupt", id=self.number)
        grace = patience(GRACE if self.interrupted else AFTER_FAILURE)
        self.wait_until(time.monotonic() + grace)
        if self.pending():
            for rank in self.pending():
                self.processes.send(rank, "cut", id=self.number)
            self.wait_until(time.monotonic() + patience(AFTER_CUT))

    def _note_deadlock(self, before: list[RankState], now: list[RankState]) -> None:
        if find_deadlock(before, now) is not None:
            self.headline = both(lambda: find_deadlock(before, now) or "")

    def wait_until(self, limit: float) -> None:
        while self.pending() and not self.processes.dead and time.monotonic() < limit:
            self.processes.receive(0.05)

    # -- what is known -----------------------------------------------------------------------------

    def look(self) -> None:
        """Ask the ranks that still run where they stand.

        Who gives no answer now is not known: what it said before is of another moment.
        """
        pending = self.pending()
        answers = self.processes.ask("where", pending, limit=LOOK) if pending else {}
        self.where = {rank: answer["where"] for rank, answer in answers.items()}

    def states(self) -> list[RankState]:
        self.look()
        return self.known_states()

    def known_states(self) -> list[RankState]:
        """What is known of each rank now."""
        states = []
        for rank in self.chosen:
            done, where = self.done.get(rank), self.where.get(rank)
            if rank in self.processes.dead:
                words = tuple(self.output.last_words(rank))
                state = RankState(rank, "dead", status=self.processes.dead[rank], last_words=words)
            elif done is None:
                state = RankState(rank, "running")
            else:
                state = RankState(rank, "failed" if "error" in done else "done")
                state.failure = done.get("error")
            state.where = where
            calls = done or where or {}
            state.collectives = calls.get("collectives")
            state.members = calls.get("members", {})
            state.messages = calls.get("messages", {})
            state.blind = calls.get("blind", False)
            states.append(state)
        return states

    def last_samples(self) -> list[dict[str, Any]]:
        """For each rank of the pool: its state, what it waits in, and its last sample."""
        states = []
        for rank in range(self.processes.size):
            sample = self.samples.get(rank, {})
            waiting = sample.get("collective") if rank not in self.done else None
            state = "idle" if rank in self.done or rank not in self.chosen else "running"
            if rank in self.processes.dead:
                state = "dead"
            elif waiting:
                state = "waiting"
            states.append({**sample, "rank": rank, "state": state, "collective": waiting})
        return states
