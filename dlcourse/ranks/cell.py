"""A cell while it runs: what has come back from the ranks, and what to do when something does not.

It waits for all ranks, notices a failure, a death or a deadlock, gets the ranks that still run
back, and says in one message what happened.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dlcourse.ranks import limits
from dlcourse.ranks.diagnosis import (
    State,
    exit_reason,
    find_deadlock,
    find_mismatch,
    report,
    timed_out,
    uneven_progress,
)
from dlcourse.ranks.display import label
from dlcourse.ranks.failure import RankError, RanksInterrupted
from dlcourse.ranks.output import Output

if TYPE_CHECKING:
    from dlcourse.ranks.pool import Ranks

GRACE = 2.0  # seconds a rank has to end after an interrupt
AFTER_FAILURE = 1.0  # seconds the others have to end after one rank failed
AFTER_CUT = 5.0  # seconds in which a wait whose connections were cut ends, on a busy machine too
LOOK = 0.5  # seconds that a rank has to say where it stands
CHECK = 1.0  # seconds between looks at ranks that do not end
TICK = 0.1  # seconds between updates of the panel
ADVICE = (
    "All ranks of a group must make the same calls, in the same order, with tensors of the same "
    "shape and type; every send needs a receive."
)


class RunningCell:
    """One cell that runs: what has come back, and what to do when something does not."""

    def __init__(self, pool: Ranks, number: int, chosen: list[int], output: Output) -> None:
        self.pool, self.number, self.chosen, self.output = pool, number, chosen, output
        self.done: dict[int, dict] = {}
        self.samples: dict[int, dict] = {}
        self.where: dict[int, dict] = {}
        self.headline: str | None = None
        self.interrupted = False
        self.started = time.monotonic()

    # -- waiting --------------------------------------------------------------------------------

    def pending(self) -> list[int]:
        return [r for r in self.chosen if r not in self.done and r not in self.pool.dead]

    def take(self, rank: int | None, message: dict) -> None:
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
        before: list[State] = []
        while self.pending():
            self.pool.receive(0.05)
            now = time.monotonic()
            if self.pool.dead:
                self.look()
                return
            if now >= next_tick:
                next_tick = now + TICK
                self.show()
            if not self.pool.host.alive():
                self.headline = "the process that watches the ranks ended, and they with it"
                return
            if failed_at is None and any("error" in d for d in self.done.values()):
                failed_at = now
            if failed_at is not None and now > failed_at + AFTER_FAILURE:
                self.release()
                return
            if now >= next_check and self.pending():
                next_check = now + CHECK
                now = self.states()
                self.headline = find_deadlock(before, now)
                if self.headline is not None:
                    self.release()
                    return
                before = now

    def wait_for_output(self) -> None:
        """What a rank printed may arrive after its result; wait for it, but not for long."""
        limit = time.monotonic() + 1.0
        while time.monotonic() < limit:
            if all(self.output.ended(r) for r in self.chosen if r in self.done):
                return
            self.pool.receive(0.02)

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
            self.headline = find_deadlock(before, self.states())
        for rank in self.pending():
            self.pool.send(rank, "interrupt", id=self.number)
        self.wait_until(time.monotonic() + (GRACE if self.interrupted else AFTER_FAILURE))
        if self.pending():
            for rank in self.pending():
                self.pool.send(rank, "cut", id=self.number)
            self.wait_until(time.monotonic() + AFTER_CUT)

    def wait_until(self, limit: float) -> None:
        while self.pending() and not self.pool.dead and time.monotonic() < limit:
            self.pool.receive(0.05)

    # -- judging --------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask the ranks that still run where they stand.

        Who gives no answer now is not known: what it said before is of another moment.
        """
        pending = self.pending()
        answers = self.pool.ask("where", pending, limit=LOOK) if pending else {}
        self.where = {rank: answer["where"] for rank, answer in answers.items()}

    def states(self) -> list[State]:
        self.look()
        return self.known_states()

    def known_states(self) -> list[State]:
        """What is known of each rank now."""
        states = []
        for rank in self.chosen:
            done, where = self.done.get(rank), self.where.get(rank)
            if rank in self.pool.dead:
                words = tuple(self.output.last_words(rank))
                state = State(rank, "dead", status=self.pool.dead[rank], last_words=words)
            elif done is None:
                state = State(rank, "running")
            else:
                state = State(rank, "failed" if "error" in done else "done")
                state.failure = done.get("error")
            state.where = where
            calls = done or where or {}
            state.collectives = calls.get("collectives")
            state.members = calls.get("members", {})
            state.messages = calls.get("messages", {})
            state.blind = calls.get("blind", False)
            states.append(state)
        return states

    def judge(self) -> None:
        """Raise what went wrong, after putting the pool in order; return if nothing did."""
        pool = self.pool
        errors = {r: d["error"] for r, d in self.done.items() if "error" in d}
        if len(self.done) == len(self.chosen) and not errors and not self.interrupted:
            self._check_progress()
            return
        lost = bool(pool.dead) or bool(self.pending()) or not pool.host.alive()
        message = self._message(errors)
        broken = any(e["group_broken"] for e in errors.values()) or self._progress()
        if not lost and broken:
            lost = not pool.regroup()
            if not lost:
                message.append(
                    "The ranks keep their variables; their process group was made anew "
                    "(wrap models and make sub-groups again)."
                )
        if lost:
            pool.end("lost")
            message.append("The next cell starts the ranks afresh; their variables are lost.")
        text = "\n".join(message)
        if self.interrupted:
            raise RanksInterrupted(text)
        raise RankError(text, errors)

    def _progress(self) -> str | None:
        return uneven_progress(self.known_states())

    def _check_progress(self) -> None:
        """After a cell that every rank finished: are they still in step with each other?"""
        if len(self.chosen) < self.pool.size:
            return  # cells for some ranks come in pairs; judged when all take part
        sentence = self._progress()
        if sentence is None:
            return
        if not self.pool.regroup():
            self.pool.end("lost")
        raise RankError(
            f"{sentence}\n" + "\n".join(report(self.known_states())) + f"\n{ADVICE}\n"
            "The ranks keep their variables; their process group was made anew."
        )

    def _message(self, errors: dict[int, dict[str, Any]]) -> list[str]:
        """The headline, a line for each rank, and the traceback of the first that failed."""
        pool = self.pool
        raised = {r: e for r, e in errors.items() if not (e["interrupted"] or e["cut"])}
        # A lost connection is the consequence of another rank's end, where there is one.
        own = {r: e for r, e in raised.items() if not e["transport"]}
        # Nor is it a cause where connections were cut from here: a rank may lose its peers' before
        # its own are cut.
        if not own and not pool.dead and self.headline is None and not self.interrupted:
            own = raised
        if pool.dead:
            rank = min(pool.dead)
            oom = limits.out_of_memory_kills() > pool.oom_kills
            headline = f"rank {rank} {exit_reason(pool.dead[rank], out_of_memory=oom)}"
            if (mismatch := find_mismatch(self.known_states())) is not None:
                headline += f" after {mismatch}"
        elif self.headline is not None and not own:
            headline = self.headline
        elif own and all(timed_out(e) for e in own.values()):
            headline = (
                f"{label(sorted(own))} gave up after {pool.timeout:g} s, the time-out of a wait. "
                f"If the others are only slow, give more time: "
                f"Ranks({pool.size}, timeout={4 * pool.timeout:g})"
            )
        elif own:
            groups: dict[str, list[int]] = {}
            for rank, error in sorted(own.items()):
                groups.setdefault(f"{error['type']}: {error['message']}", []).append(rank)
            headline = "; ".join(f"{label(ranks)} raised {text}" for text, ranks in groups.items())
        elif self.interrupted:
            headline = "interrupted"
        else:
            headline = f"{label(self.pending())} did not end"
        if self.interrupted and headline != "interrupted":
            headline = f"interrupted: {headline}"
        lines = [headline, *report(self.known_states())]
        if self.headline is not None and not own and not self.interrupted:
            lines.append(ADVICE)
        if own:
            first = min(own)
            lines += ["", f"Traceback of rank {first}:", own[first]["traceback"].rstrip()]
        return lines

    # -- the panel ------------------------------------------------------------------------------

    def show(self) -> None:
        """Update the panel from the last samples, and ask for new ones."""
        pool = self.pool
        if pool.panel is None:
            return
        pool.sample(self.pending())
        states = []
        for rank in range(pool.size):
            sample = self.samples.get(rank, {})
            waiting = sample.get("collective") if rank not in self.done else None
            state = "idle" if rank in self.done or rank not in self.chosen else "running"
            if rank in pool.dead:
                state = "dead"
            elif waiting:
                state = "waiting"
            states.append({**sample, "rank": rank, "state": state, "collective": waiting})
        elapsed = time.monotonic() - self.started
        pool.panel.update(
            {"cell": self.number, "busy": True, "elapsed_s": elapsed, "ranks": states}
        )
