"""`Ranks`: several processes in one process group, driven from a notebook or a script.

ranks = Ranks(4)
ranks.run(function, 1, 2)     # one result for each rank
ranks["name"]                 # a name's value in every rank
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import queue
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle

from dlcourse.measure.run import Run
from dlcourse.panel.widget import Panel, front_end_present, last_state
from dlcourse.ranks import limits, stop
from dlcourse.ranks.cell import RunningCell
from dlcourse.ranks.channel import name_of
from dlcourse.ranks.definitions import Definitions, notebook_cell
from dlcourse.ranks.diagnosis import exit_reason
from dlcourse.ranks.display import Results, label, ranges
from dlcourse.ranks.failure import NoRanks, RankError, RanksInterrupted, undefined_name
from dlcourse.ranks.host import Host, environment, new_directory, remove
from dlcourse.ranks.output import Output
from dlcourse.ranks.source import check as check_source
from dlcourse.words.strings import t

DEVICES = ("auto", "cpu", "cuda", "mps")
START_LIMIT = 180.0
STOP_LIMIT = 5.0  # seconds for ranks to leave the packing of a value
TIMEOUTS = (0.1, 1e9)  # seconds: what torch and its transport can count
_default: Ranks | None = None


def default_pool() -> Ranks:
    """The pool that `%%ranks` uses; raises ValueError where none was made."""
    if _default is None:
        raise NoRanks("there are no ranks yet. Make them first: ranks = Ranks(4)")
    return _default


class Ranks:
    """Ranks in a process group, each with variables that stay between cells.

    Args:
        n: number of ranks; 4, or 2 on a machine with under 1.5 GB.
        device: "auto" (one GPU each where there are enough, else the CPU), "cpu", "cuda", "mps".
        timeout: seconds until a collective that waits fails.
        default: whether `%%ranks` cells use this pool from now on. The one before it is stopped
            when this one is up; if this one does not come up, that one is as it was.

    Raises:
        ValueError: for a number, a device or a time that cannot be; nothing is started then.
        RanksInterrupted: for a Stop before the ranks were up.
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
        self.panel: Panel | None = None
        self._shown_in: int | None = None  # the cell below which the panel was shown last
        self._definitions = Definitions()
        self._cell: RunningCell | None = None
        with stop.Stops() as stops:
            try:
                self._start()
                stop.check()
            except KeyboardInterrupt:
                self.stop()
                raise RanksInterrupted(_not_started(self.size)) from None
            stops.ignore()
            if default:
                before, _default = _default, self
                if before is not None:
                    before.stop()
            stops.forget()

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
        return [_read(done[rank]["value"], rank, "the result") for rank in sorted(done)]

    def cell(
        self, source: str, ranks: Iterable[int] | None = None, *, record: bool = True
    ) -> Results | None:
        """Run a cell's source in every rank, as `%%ranks` does; returns what they show.

        Raises:
            SyntaxError: if it is no Python that can be compiled; nothing runs then.
            RankError: if it fails in a rank.
        """
        check_source(source)
        done = self._execute({"kind": "cell", "source": source}, self._chosen(ranks), record)
        shown = {rank: result for rank, result in done.items() if "repr" in result}
        return Results(shown) if shown else None

    def __getitem__(self, name: str) -> list[Any]:
        """The value of a name in every rank; however long the ranks take to pack it.

        Raises:
            KeyError: if a rank does not have the name.
            RankError: if a rank died, or cannot send the value.
            RanksInterrupted: for a Stop.
        """
        self._ensure()
        answers: dict[int, dict] = {}
        with stop.Stops() as stops:
            try:
                self.ask("value", limit=math.inf, answers=answers, name=name)
            except KeyboardInterrupt:
                stops.ignore()
                raise RanksInterrupted(self._give_up_value(name, answers)) from None
        if self.dead or len(answers) < self.size:
            died = [f"rank {r} {exit_reason(status)}" for r, status in sorted(self.dead.items())]
            what = "; ".join(died) or "the process that watches the ranks ended, and they with it,"
            self.end("lost")
            raise RankError(
                f"{what} before all ranks had sent {name}.\n"
                "The next cell starts the ranks afresh; their variables are lost."
            )
        missing = [rank for rank, answer in answers.items() if answer.get("missing")]
        if missing:
            advice = self._definitions.advice(name, min(missing), self._number, in_last=True)
            raise KeyError(f"{name} is not a name in {label(sorted(missing))} {advice}".rstrip())
        failed = {rank: a["error"] for rank, a in sorted(answers.items()) if "error" in a}
        if failed:
            words = "; ".join(f"rank {rank}: {error}" for rank, error in failed.items())
            raise RankError(f"{name} cannot be sent by {label(sorted(failed))}: {words}")
        return [_read(answers[rank]["value"], rank, name) for rank in sorted(answers)]

    def _give_up_value(self, name: str, answers: dict[int, dict]) -> str:
        """Get the ranks back that still pack a value; returns what is to be said."""
        silent = sorted(set(range(self.size)) - set(answers))
        for rank in silent:
            self.send(rank, "interrupt", id=self._asked)
        limit = time.monotonic() + STOP_LIMIT
        while set(silent) - set(answers) and time.monotonic() < limit:
            self._collect(self._asked, answers)
        words = (
            f"interrupted: {label(silent)} had not sent {name} yet." if silent else "interrupted"
        )
        if set(silent) - set(answers):
            self.end("lost")
            words += "\nThe next cell starts the ranks afresh; their variables are lost."
        return words

    def restart(self) -> None:
        """Start the ranks afresh: new processes, no variables."""
        with stop.Stops():
            self.stop()
            try:
                self._start()
            except KeyboardInterrupt:
                raise RanksInterrupted(
                    f"interrupted while the ranks started. {self._again()}"
                ) from None

    def stop(self) -> None:
        """End the ranks. Cells may be run again after `restart()`."""
        if self.state != "stopped":
            self.end("stopped")

    def _again(self) -> str:
        """What gets stopped ranks going, by whatever name the learner knows them."""
        return f"Start them with their restart(), or make new ones: ranks = Ranks({self.size})"

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
        dead = f", {label(sorted(self.dead))} dead" if self.dead else ""
        return f"Ranks({self.size}{backend}, {self.state}{dead})"

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks."""
        return [self._pids[rank] for rank in sorted(self._pids)]

    # -- start and end --------------------------------------------------------------------------

    def _start(self) -> None:
        self._events: queue.SimpleQueue[tuple[int | None, dict]] = queue.SimpleQueue()
        self._pids: dict[int, int] = {}
        self.dead: dict[int, int | None] = {}
        self._device = self.device
        self._clock_offsets: dict[int, int] = {}
        self.host = Host.get()
        self._number = self.host.add(self._arrived)
        self.state = "starting"
        directory = new_directory()
        self._address = self.host.hub.bind(directory)
        try:
            self.host.wait_until_ready()
            self.oom_kills = limits.out_of_memory_kills()
            self.host.send_agent(
                "start",
                pool=self._number,
                size=self.size,
                device=self.device,
                timeout=self.timeout,
                threads=limits.threads_per_rank(self.size),
                environment=environment(),
                folder=_folder(),
                path=[entry for entry in sys.path if isinstance(entry, str)],
                directory=str(directory),
                address=self._address,
            )
            self._wait_for_ranks()
        except BaseException:
            self.end("stopped")
            raise
        finally:
            if self.state != "ready":
                remove(directory)
        if self.panel is None:
            self.show()
        self._show(cell=0)  # what an earlier life of the ranks measured is over

    def _arrived(self, rank: int | None, message: dict) -> None:
        """Keep a message for whoever waits; a death is shown at once, also between cells."""
        self._events.put((rank, message))
        if message["kind"] == "dead" and self.state == "ready":
            self._show(died=[message["rank"]])

    def _wait_for_ranks(self) -> None:
        limit = time.monotonic() + START_LIMIT
        while len(self._pids) < self.size:
            stop.check()
            try:
                rank, message = self._events.get(timeout=0.05)
            except queue.Empty:
                if not self.host.alive() or time.monotonic() > limit:
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
        self.host.send_agent("watch", pool=self._number, pids=self._pids)
        self.state = "ready"

    def _start_failure(self, what: str) -> str:
        return f"{what}. The launcher's last words:\n{self.host.log_tail()}"

    def _ensure(self) -> None:
        """Have ranks that can run a cell, or say why not."""
        if self.state == "stopped":
            raise ValueError(f"these ranks are stopped. {self._again()}")
        self.receive(0)  # a rank may have died since the last cell
        if self.state == "ready" and (self.dead or not self.host.alive()):
            self.end("lost")
        if self.state == "lost":
            print(f"{label(list(range(self.size)))} started afresh; their variables are gone.")
            with stop.Stops():
                try:
                    self._start()
                except KeyboardInterrupt:
                    self.state = "lost"
                    raise RanksInterrupted(
                        "interrupted while the ranks started. Run a cell again: it starts them."
                    ) from None

    def end(self, state: str) -> None:
        """End the processes of this pool; quick, whatever they are doing."""
        died, self.state = list(self.dead), state
        with stop.Stops():  # a Stop waits until they are gone
            if self.host.alive():
                self.host.send_agent("end", pool=self._number)
                limit = time.monotonic() + 3
                while time.monotonic() < limit:
                    try:
                        if self._events.get(timeout=0.1)[1]["kind"] == "ended":
                            break
                    except queue.Empty:
                        if not self.host.alive():
                            break
            self.host.remove(self._number)
            self.host.hub.unbind(self._address)
            self._pids, self.dead = {}, {}
            self._show(died=died)

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

    def send(self, rank: int, kind: str, **fields: Any) -> None:
        self.host.hub.send(name_of(self._number, rank), {"kind": kind, **fields})

    def ask(
        self,
        kind: str,
        ranks: Iterable[int] | None = None,
        *,
        limit: float = 10.0,
        answers: dict[int, dict] | None = None,
        **fields: Any,
    ) -> dict[int, dict]:
        """Send a request to ranks and collect the answers of those that do not stay silent."""
        self._asked = number = next(self._cells)
        waiting = set(range(self.size) if ranks is None else ranks) - set(self.dead)
        for rank in waiting:
            self.send(rank, kind, id=number, **fields)
        answers = {} if answers is None else answers
        end = time.monotonic() + limit
        while waiting - set(answers) - set(self.dead) and time.monotonic() < end:
            self._collect(number, answers)
            if limit == math.inf and (self.dead or not self.host.alive()):
                break
        return answers

    def _collect(self, number: int, answers: dict[int, dict]) -> None:
        """Note the answers to a request that have arrived."""
        for rank, message in self.receive(0.05):
            if message.get("id") == number and rank is not None:
                answers[rank] = message

    def receive(self, timeout: float) -> list[tuple[int | None, dict]]:
        """The messages that have arrived, after a wait for the first; a running cell sees all."""
        found: list[tuple[int | None, dict]] = []
        stop.check()
        try:
            item = self._events.get(timeout=timeout)
            while True:
                found.append(item)
                item = self._events.get_nowait()
        except queue.Empty:
            pass
        for rank, message in found:
            if message["kind"] == "dead":
                self.dead[message["rank"]] = message["status"]
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
        cell = RunningCell(self, number, chosen, Output(chosen, marker, live=front_end_present()))
        with stop.Stops() as stops:  # `receive` is where a Stop is raised
            self._cell = cell
            if self.panel is not None:
                self.panel.next_label = notebook_cell()
            self.state = "running"
            try:
                for rank in chosen:
                    self.send(rank, **request)
                cell.wait()
                cell.wait_for_output()
            except KeyboardInterrupt:
                cell.interrupt()
            finally:
                stops.ignore()
                self.state = "ready" if self.state == "running" else self.state
                cell.output.finish()
                self._cell = None
                records = [d["record"] for _, d in sorted(cell.done.items()) if d.get("record")]
                if records:
                    self.last = Run(records)
                fine = all("error" not in cell.done.get(rank, {"error": None}) for rank in chosen)
                self._show_end(cell, records, "done" if fine else "failed")
                if "source" in request:
                    self._definitions.note(request["source"], chosen, self._number)
            try:
                cell.judge()
            except (RankError, RanksInterrupted) as error:
                self._advise(error)
                if fine:  # every rank ended well, but not in step with the others
                    self._show_end(cell, records, "failed")
                raise
        return cell.done

    def _advise(self, error: RankError | RanksInterrupted) -> None:
        """Say which cell defined the names that ranks did not find, and what is lost."""
        missing: dict[str, str] = {}
        for rank, failure in sorted(getattr(error, "failures", {}).items()):
            if name := undefined_name(failure):
                missing.setdefault(name, self._definitions.advice(name, rank, self._number))
        for advice in filter(None, missing.values()):
            error.add_note(advice)
        if self.state == "lost":
            self._definitions.last_lost_ranks()
            if self._definitions.to_run_again(None):
                error.add_note(t("ranks.which_again"))

    def regroup(self) -> bool:
        """Make the process group anew in living ranks, so that their variables are kept."""
        answers = self.ask("join", limit=15.0)
        return len(answers) == self.size and not any("error" in a for a in answers.values())

    # -- the panel ------------------------------------------------------------------------------

    def sample(self, ranks: Iterable[int]) -> None:
        """Ask ranks for what the panel shows; they answer from their second thread."""
        if self.panel is not None:
            for rank in ranks:
                self.send(rank, "sample")

    def show(self) -> None:
        """Show the live panel below the running cell, if somebody is there to see it.

        A panel is drawn where `Ranks` was made. After a reload of the page, or far below that
        cell, it can be had again; all that are drawn show the same.
        """
        if front_end_present():
            self.panel = self.panel or Panel(self.size)
            self.panel.display()
            self._shown_in = notebook_cell()

    def _ipython_display_(self) -> None:
        """As the last line of a cell: the panel, the state, and the cells to run again."""
        if not front_end_present() or self._shown_in == notebook_cell():
            raise NotImplementedError  # IPython then uses _repr_pretty_
        from IPython.display import display

        self.show()
        display({"text/plain": self._described()}, raw=True)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self._described())

    def _described(self) -> str:
        alive = self._number if self.state in ("ready", "running") else None
        cells = self._definitions.to_run_again(alive)
        heading = [t("ranks.run_again")] if cells else []
        return "\n".join([repr(self), *heading, *(f"  {cell}" for cell in cells)])

    def _show(self, cell: int | None = None, died: Iterable[int] = ()) -> None:
        """Show the state of the ranks while no cell runs; a new `cell` empties the panel."""
        if self.panel is not None:
            died = set(died) | set(self.dead)
            # Where one died, the others were ended; where none did, nothing is known of them.
            kind = {"ready": "idle", "lost": "stopped" if died else "lost"}
            states = [
                {"rank": r, "state": "dead" if r in died else kind.get(self.state, self.state)}
                for r in range(self.size)
            ]
            number = {} if cell is None else {"cell": cell}
            self.panel.update({"busy": False, "ranks": states} | number)

    def _show_end(self, running: RunningCell, records: list[dict], outcome: str) -> None:
        """Show what a cell moved and used; a short one is over before its first sample."""
        if self.panel is not None:
            outcome = "interrupted" if running.interrupted else outcome
            elapsed_s = time.monotonic() - running.started
            state = last_state(running.number, elapsed_s, records) | {"outcome": outcome}
            # A rank that recorded nothing (--fast, or not chosen) has its row all the same.
            silent = set(range(self.size)) - {rank["rank"] for rank in state["ranks"]}
            state["ranks"] += [
                {"rank": r, "state": "dead" if r in self.dead else "idle", "collective": None}
                for r in sorted(silent)
            ]
            self.panel.update(state)


def _not_started(size: int) -> str:
    """What is left after a Stop while ranks started, and how to go on."""
    what = f"interrupted before the {size} ranks were up"
    if _default is None or _default.state == "stopped":
        return f"{what}: there are none. Run the cell with Ranks(...) again."
    return f"{what}: {_default!r} is still there, and `%%ranks` uses it."


def _read(value: bytes, rank: int, what: str) -> Any:
    """A value that a rank sent; RankError where this process cannot make it."""
    try:
        return pickle.loads(value)
    except Exception as error:
        raise RankError(
            f"{what} of rank {rank} cannot be read in the notebook: "
            f"{type(error).__name__}: {error}. Send numbers, text, lists or tensors instead."
        ) from error


def _folder() -> str | None:
    """The folder that the notebook works in, unless it is gone."""
    try:
        return os.getcwd()
    except OSError:
        return None


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
    least, most = TIMEOUTS
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not least <= timeout <= most:
        raise ValueError(
            f"timeout={timeout!r}: must be a number of seconds from {least:g} to {most:g}; "
            f"timeout={most:g} is for ever"
        )
