"""`Ranks`: several processes in one process group, driven from a notebook or a script.

ranks = Ranks(4)
ranks.run(function, 1, 2)     # one result for each rank
ranks["name"]                 # a name's value in every rank
"""

from __future__ import annotations

import ast
import itertools
import pickle
import queue
import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle

from dlcourse.measure.run import Run
from dlcourse.panel.widget import Panel, front_end_present, last_state
from dlcourse.ranks import limits
from dlcourse.ranks.channel import name_of
from dlcourse.ranks.diagnosis import (
    State,
    exit_reason,
    find_deadlock,
    find_mismatch,
    report,
    uneven_progress,
)
from dlcourse.ranks.display import Results, label, ranges
from dlcourse.ranks.failure import RankError, RanksInterrupted
from dlcourse.ranks.host import Host, new_directory, remove
from dlcourse.ranks.output import Output

DEVICES = ("auto", "cpu", "cuda", "mps")
GRACE = 2.0  # seconds a rank has to end after an interrupt
AFTER_FAILURE = 1.0  # seconds the others have to end after one rank failed
CHECK = 1.0  # seconds between looks at ranks that do not end
LOOKS = 3  # looks that must find the same deadlock
IDLE_CPU = 0.05  # a rank that waits for ever uses less than this share of a core
TICK = 0.1  # seconds between updates of the panel
START_LIMIT = 180.0
ADVICE = (
    "All ranks of a group must make the same calls, in the same order, with tensors of the same "
    "shape and type; every send needs a receive."
)

_default: Ranks | None = None


def default_pool() -> Ranks:
    """The pool that `%%ranks` uses; raises ValueError where none was made."""
    if _default is None:
        raise ValueError("there are no ranks yet. Make them first: ranks = Ranks(4)")
    return _default


class Ranks:
    """Ranks in a process group, each with variables that stay between cells.

    Args:
        n: number of ranks; 4, or 2 on a machine with under 1.5 GB.
        device: "auto" (one GPU each where there are enough, else the CPU), "cpu", "cuda", "mps".
        timeout: seconds until a collective that waits fails.
        default: whether `%%ranks` cells use this pool from now on, instead of the one before it.

    Raises:
        ValueError: for a number, a device or a time that cannot be; nothing is started then.
    """

    def __init__(
        self,
        n: int | None = None,
        *,
        device: str = "auto",
        timeout: float = 30.0,
        default: bool = True,
    ) -> None:
        global _default
        self.size = limits.default_ranks() if n is None else n
        self.device, self.timeout = device, timeout
        _check(self.size, device, timeout)
        self.state = "stopped"
        self.last: Run | None = None
        self._cells = itertools.count(1)
        self._panel: Panel | None = None
        self._cell: _Cell | None = None
        if default:
            if _default is not None:
                _default.stop()
            _default = self
        self._start()

    # -- what learners use ----------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        ranks: Iterable[int] | None = None,
        record: bool = False,
        **kwargs: Any,
    ) -> list[Any]:
        """Run a function in every rank; returns their results in the order of the ranks.

        Tensors come back as NumPy arrays, so that the notebook needs no torch.

        Raises:
            RankError: if it fails in a rank.
        """
        call = cloudpickle.dumps((function, args, kwargs))
        done = self._execute({"kind": "call", "call": call}, self._chosen(ranks), record)
        return [pickle.loads(done[rank]["value"]) for rank in sorted(done)]

    def cell(
        self, source: str, ranks: Iterable[int] | None = None, *, record: bool = True
    ) -> Results | None:
        """Run a cell's source in every rank, as `%%ranks` does; returns what they show."""
        ast.parse(source, "<ranks cell>")
        done = self._execute({"kind": "cell", "source": source}, self._chosen(ranks), record)
        shown = {rank: result for rank, result in done.items() if "repr" in result}
        return Results(shown) if shown else None

    def __getitem__(self, name: str) -> list[Any]:
        """The value of a name in every rank; KeyError if a rank does not have it."""
        self._ensure()
        answers = self._ask("value", name=name)
        failed = {rank: a["error"] for rank, a in answers.items() if "error" in a}
        if failed:
            raise KeyError(f"{name} is not a name in {label(sorted(failed))}")
        return [pickle.loads(answers[rank]["value"]) for rank in sorted(answers)]

    def restart(self) -> None:
        """Start the ranks afresh: new processes, no variables."""
        self.stop()
        self._start()

    def stop(self) -> None:
        """End the ranks. Cells may be run again after `restart()`."""
        if self.state != "stopped":
            self._end("stopped")

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        global _default
        self.stop()
        if _default is self:
            _default = None

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        backend = f", {self._device}" if self.state != "stopped" else ""
        dead = f", {label(sorted(self._dead))} dead" if self._dead else ""
        return f"Ranks({self.size}{backend}, {self.state}{dead})"

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks."""
        return [self._pids[rank] for rank in sorted(self._pids)]

    # -- start and end --------------------------------------------------------------------------

    def _start(self) -> None:
        self._events: queue.SimpleQueue[tuple[int | None, dict]] = queue.SimpleQueue()
        self._pids: dict[int, int] = {}
        self._dead: dict[int, int | None] = {}
        self._device = self.device
        self._clock_offsets: dict[int, int] = {}
        self._host = Host.get()
        self._number = self._host.add(lambda rank, message: self._events.put((rank, message)))
        self.state = "starting"
        directory = new_directory()
        try:
            self._host.wait_until_ready()
            self._oom_kills = limits.out_of_memory_kills()
            self._host.send_agent(
                "start",
                pool=self._number,
                size=self.size,
                device=self.device,
                timeout=self.timeout,
                threads=limits.threads_per_rank(self.size),
                environment={},
                directory=str(directory),
                address=self._host.hub.bind(directory),
            )
            self._wait_for_ranks()
        except BaseException:
            self._end("stopped")
            raise
        finally:
            if self.state != "ready":
                remove(directory)
        if self._panel is None and front_end_present():
            self._panel = Panel(self.size)
            self._panel.display()
        self._show()

    def _wait_for_ranks(self) -> None:
        limit = time.monotonic() + START_LIMIT
        while len(self._pids) < self.size:
            try:
                rank, message = self._events.get(timeout=0.2)
            except queue.Empty:
                if not self._host.alive() or time.monotonic() > limit:
                    raise RuntimeError(self._start_failure("the ranks did not start")) from None
                continue
            kind = message["kind"]
            if kind == "ready":
                self._pids[rank] = message["pid"]
                self._device = message["device"].partition(":")[0]
                self._clock_offsets[rank] = 0  # one machine: one monotonic clock
            elif kind == "refused":
                raise ValueError(message["reason"])
            elif kind == "failed":
                raise RuntimeError(f"rank {rank} could not start:\n{message['text']}")
            elif kind == "launcher_ended":
                raise RuntimeError(self._start_failure("the ranks ended while they started"))
        self._host.send_agent("watch", pool=self._number, pids=self._pids)
        self.state = "ready"

    def _start_failure(self, what: str) -> str:
        return f"{what}. The launcher's last words:\n{self._host.log_tail()}"

    def _ensure(self) -> None:
        """Have ranks that can run a cell, or say why not."""
        if self.state == "stopped":
            raise ValueError("these ranks are stopped. Start them: ranks.restart()")
        self._next(0)  # a rank may have died since the last cell
        if self.state == "ready" and (self._dead or not self._host.alive()):
            self._end("lost")
        if self.state == "lost":
            print(f"{label(list(range(self.size)))} started afresh; their variables are gone.")
            self._start()

    def _end(self, state: str) -> None:
        """End the processes of this pool; quick, whatever they are doing."""
        if self._host.alive():
            self._host.send_agent("end", pool=self._number)
            limit = time.monotonic() + 3
            while time.monotonic() < limit:
                try:
                    if self._events.get(timeout=0.1)[1]["kind"] == "ended":
                        break
                except queue.Empty:
                    if not self._host.alive():
                        break
        self._host.remove(self._number)
        self._pids, self._dead = {}, {}
        self.state = state
        self._show()

    # -- running --------------------------------------------------------------------------------

    def _chosen(self, ranks: Iterable[int] | None) -> list[int]:
        """The ranks that take part; raises ValueError for one that does not exist."""
        if ranks is None:
            return list(range(self.size))
        chosen = sorted(set(ranks))
        wrong = [r for r in chosen if not isinstance(r, int) or not 0 <= r < self.size]
        if wrong or not chosen:
            raise ValueError(
                f"ranks={ranges(wrong) if wrong else 'none'}: there are ranks 0-{self.size - 1}. "
                f"Name some of these, or make more: Ranks({max([*wrong, 0]) + 1})"
            )
        return chosen

    def _send(self, rank: int, kind: str, **fields: Any) -> None:
        self._host.hub.send(name_of(self._number, rank), {"kind": kind, **fields})

    def _ask(
        self, kind: str, ranks: Iterable[int] | None = None, *, limit: float = 10.0, **fields: Any
    ) -> dict[int, dict]:
        """Send a request to ranks and collect the answers of those that do not stay silent."""
        number = next(self._cells)
        waiting = set(range(self.size) if ranks is None else ranks) - set(self._dead)
        for rank in waiting:
            self._send(rank, kind, id=number, **fields)
        answers: dict[int, dict] = {}
        end = time.monotonic() + limit
        while waiting - set(answers) - set(self._dead) and time.monotonic() < end:
            for rank, message in self._next(0.05):
                if message.get("id") == number and rank is not None:
                    answers[rank] = message
        return answers

    def _next(self, timeout: float) -> list[tuple[int | None, dict]]:
        """The messages that have arrived, after a wait for the first; a running cell sees all."""
        found: list[tuple[int | None, dict]] = []
        try:
            item = self._events.get(timeout=timeout)
            while True:
                found.append(item)
                item = self._events.get_nowait()
        except queue.Empty:
            pass
        for rank, message in found:
            if message["kind"] == "dead":
                self._dead[message["rank"]] = message["status"]
            elif self._cell is not None:
                self._cell.take(rank, message)
        return found

    def _execute(self, request: dict, chosen: list[int], record: bool) -> dict[int, dict]:
        """Run a request in ranks and wait for all of them; raises RankError if it went wrong."""
        self._ensure()
        number = next(self._cells)
        marker = b"\0%s\n" % secrets.token_hex(12).encode()
        request |= {
            "id": number,
            "record": record,
            "marker": marker,
            "filename": f"<ranks cell {number}>",
        }
        cell = _Cell(self, number, chosen, Output(chosen, marker, live=front_end_present()))
        self._cell = cell
        self.state = "running"
        try:
            for rank in chosen:
                self._send(rank, **request)
            cell.wait()
            cell.wait_for_output()
        except KeyboardInterrupt:
            cell.interrupt()
        finally:
            self.state = "ready" if self.state == "running" else self.state
            cell.output.finish()
            self._cell = None
            records = [cell.done[r]["record"] for r in chosen if cell.done.get(r, {}).get("record")]
            if records:
                self.last = Run(records)
            self._show_end(number, time.monotonic() - cell.started, records)
        cell.judge()
        return cell.done

    def regroup(self) -> bool:
        """Make the process group anew in living ranks, so that their variables are kept."""
        answers = self._ask("join", limit=15.0)
        return len(answers) == self.size and not any("error" in a for a in answers.values())

    # -- the panel ------------------------------------------------------------------------------

    def sample(self, ranks: Iterable[int]) -> None:
        """Ask ranks for what the panel shows; they answer from their second thread."""
        if self._panel is not None:
            for rank in ranks:
                self._send(rank, "sample")

    def _show(self) -> None:
        """Show the state of the ranks while no cell runs."""
        if self._panel is not None:
            kind = {"ready": "idle"}.get(self.state, self.state)
            states = [
                {"rank": r, "state": "dead" if r in self._dead else kind} for r in range(self.size)
            ]
            self._panel.update({"busy": False, "ranks": states})

    def _show_end(self, cell: int, elapsed_s: float, records: list[dict]) -> None:
        """Show what a cell moved and used; a short one is over before its first sample."""
        if self._panel is not None:
            state = last_state(cell, elapsed_s, records)
            # A rank that recorded nothing (--fast, or not chosen) has its row all the same.
            silent = set(range(self.size)) - {rank["rank"] for rank in state["ranks"]}
            state["ranks"] += [
                {"rank": r, "state": "dead" if r in self._dead else "idle", "collective": None}
                for r in sorted(silent)
            ]
            self._panel.update(state)


class _Suspicion:
    """A deadlock is believed when several looks find the same one and the ranks did nothing since.

    On a busy machine a rank may stand at one place for seconds, and a loop of messages looks the
    same at each look; but then it uses processor time.
    """

    def __init__(self) -> None:
        self.sentence: str | None = None
        self.since = 0.0
        self.looks = 0
        self.cpu_s: dict[int, float] = {}

    def confirmed(self, sentence: str | None, cpu_s: dict[int, float]) -> bool:
        now = time.monotonic()
        idle = all(
            cpu_s[rank] - self.cpu_s.get(rank, -1.0) < IDLE_CPU * max(now - self.since, CHECK)
            for rank in cpu_s
        )
        if sentence is None or sentence != self.sentence or not idle:
            self.sentence, self.since, self.looks, self.cpu_s = sentence, now, 1, cpu_s
            return False
        self.looks += 1
        return self.looks >= LOOKS


class _Cell:
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
        return [r for r in self.chosen if r not in self.done and r not in self.pool._dead]

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
        suspicion = _Suspicion()
        while self.pending():
            self.pool._next(0.05)
            now = time.monotonic()
            if self.pool._dead:
                self.look()
                return
            if now >= next_tick:
                next_tick = now + TICK
                self.show()
            if not self.pool._host.alive():
                self.headline = "the process that watches the ranks ended, and they with it"
                return
            if failed_at is None and any("error" in d for d in self.done.values()):
                failed_at = now
            if failed_at is not None and now > failed_at + AFTER_FAILURE:
                self.release()
                return
            if now >= next_check and self.pending():
                next_check = now + CHECK
                found = find_deadlock(self.states())
                if suspicion.confirmed(found, {r: w["cpu_s"] for r, w in self.where.items()}):
                    self.headline = found
                    self.release()
                    return

    def wait_for_output(self) -> None:
        """What a rank printed may arrive after its result; wait for it, but not for long."""
        limit = time.monotonic() + 1.0
        while time.monotonic() < limit:
            if all(self.output.ended(r) for r in self.chosen if r in self.done):
                return
            self.pool._next(0.02)

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
        self.look()
        if self.headline is None:
            self.headline = find_deadlock(self.states())
        for rank in self.pending():
            self.pool._send(rank, "interrupt", id=self.number)
        self.wait_until(time.monotonic() + (GRACE if self.interrupted else AFTER_FAILURE))
        if self.pending():
            for rank in self.pending():
                self.pool._send(rank, "cut", id=self.number)
            self.wait_until(time.monotonic() + GRACE)

    def wait_until(self, limit: float) -> None:
        while self.pending() and not self.pool._dead and time.monotonic() < limit:
            self.pool._next(0.05)

    # -- judging --------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask the ranks that still run where they stand."""
        pending = self.pending()
        answers = self.pool._ask("where", pending, limit=0.5) if pending else {}
        self.where |= {rank: answer["where"] for rank, answer in answers.items()}

    def states(self) -> list[State]:
        self.look()
        return self.known_states()

    def known_states(self) -> list[State]:
        """What is known of each rank now."""
        states = []
        for rank in self.chosen:
            done, where = self.done.get(rank), self.where.get(rank)
            if rank in self.pool._dead:
                words = tuple(self.output.last_words(rank))
                state = State(rank, "dead", status=self.pool._dead[rank], last_words=words)
            elif done is None:
                state = State(rank, "running")
            else:
                state = State(rank, "failed" if "error" in done else "done")
                state.failure = done.get("error")
            state.where = where
            state.collectives = (done or where or {}).get("collectives")
            states.append(state)
        return states

    def judge(self) -> None:
        """Raise what went wrong, after putting the pool in order; return if nothing did."""
        pool = self.pool
        errors = {r: d["error"] for r, d in self.done.items() if "error" in d}
        if len(self.done) == len(self.chosen) and not errors and not self.interrupted:
            self._check_progress()
            return
        lost = bool(pool._dead) or bool(self.pending()) or not pool._host.alive()
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
            pool._end("lost")
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
            self.pool._end("lost")
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
        if not own and not pool._dead:
            own = raised
        if pool._dead:
            rank = min(pool._dead)
            oom = limits.out_of_memory_kills() > pool._oom_kills
            headline = f"rank {rank} {exit_reason(pool._dead[rank], out_of_memory=oom)}"
            if (mismatch := find_mismatch(self.known_states())) is not None:
                headline += f" after {mismatch}"
        elif self.headline is not None and not own:
            headline = self.headline
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
        if pool._panel is None:
            return
        pool.sample(self.pending())
        states = []
        for rank in range(pool.size):
            sample = self.samples.get(rank, {})
            waiting = sample.get("collective") if rank not in self.done else None
            state = "idle" if rank in self.done or rank not in self.chosen else "running"
            if rank in pool._dead:
                state = "dead"
            elif waiting:
                state = "waiting"
            states.append({**sample, "rank": rank, "state": state, "collective": waiting})
        elapsed = time.monotonic() - self.started
        pool._panel.update(
            {"cell": self.number, "busy": True, "elapsed_s": elapsed, "ranks": states}
        )


def _check(n: object, device: object, timeout: object) -> None:
    """Refuse what cannot be, before anything starts."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: the number of ranks must be a whole number of at least 1")
    fitting = limits.fitting_ranks()
    if n > fitting:
        need = (limits.SHARED_BYTES + n * limits.RANK_BYTES) / 1e9
        raise ValueError(
            f"n={n}: {n} ranks need about {need:.1f} GB of memory, and this machine has "
            f"{limits.memory_bytes() / 1e9:.1f} GB: at most {fitting} would fit. "
            f"Use Ranks({min(fitting, 4)}); the planner shows thousands of ranks without "
            "processes."
        )
    if device not in DEVICES:
        raise ValueError(f"device={device!r}: must be one of {', '.join(map(repr, DEVICES))}")
    if device == "mps" and n > 1:
        raise ValueError(f"n={n} with device='mps': an Apple GPU serves one process. Use Ranks(1).")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout={timeout!r}: must be a number of seconds above 0")
