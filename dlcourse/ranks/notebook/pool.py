"""`Ranks`: several processes in one process group, driven from a notebook or a script.

ranks = Ranks(4)
ranks.run(function, 1, 2)     # one result for each rank
ranks["name"]                 # a name's value in every rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import cloudpickle

from dlcourse import machine
from dlcourse.measure.run import Run
from dlcourse.ranks.diagnosis.report import named
from dlcourse.ranks.display import Results, label
from dlcourse.ranks.errors import NoRanks, NotInRanks, RankError, RanksInterrupted, undefined_name
from dlcourse.ranks.notebook import stop
from dlcourse.ranks.notebook.agent_process import AgentProcess
from dlcourse.ranks.notebook.definitions import Definitions
from dlcourse.ranks.notebook.front_end import front_end_present, notebook_cell
from dlcourse.ranks.notebook.observer import Observation
from dlcourse.ranks.notebook.one_at_a_time import OneAtATime
from dlcourse.ranks.notebook.output import Output, new_marker
from dlcourse.ranks.notebook.pool_arguments import check, check_name, chosen_ranks
from dlcourse.ranks.notebook.rank_processes import RankProcesses
from dlcourse.ranks.notebook.running_cell import RunningCell
from dlcourse.ranks.notebook.values import fetch
from dlcourse.ranks.notebook.verdict import between_cells, judge
from dlcourse.ranks.pickling import loads_result
from dlcourse.ranks.source import check as check_source
from dlcourse.words.strings import t

_default: Ranks | None = None


def default_pool() -> Ranks:
    """The pool that `%%ranks` uses; raises ValueError where none was made."""
    if _default is None:
        raise NoRanks(t("ranks.none_yet"))
    return _default


class Ranks:
    """Ranks in a process group, each with variables that stay between cells.

    Args:
        n: number of ranks; 4, or 2 on a machine with under 1.5 GB.
        device: "auto" (one GPU each where there are enough, else the CPU), "cpu", "cuda", "mps".
        timeout: seconds until a collective that waits fails.
        preload: name of a module that is imported once, before the ranks are forked, so that they
            share its memory. It may fail to import: what needs it then says so.
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
        preload: str | None = None,
        default: bool = True,
    ) -> None:
        global _default
        self.size = machine.default_ranks() if n is None else n
        self.device, self.timeout = device, timeout
        check(self.size, device, timeout)
        self.processes = RankProcesses(self.size, device, timeout, preload)
        self.observation = Observation(self.processes)
        self._alone = OneAtATime()
        self.last: Run | None = None
        self._definitions = Definitions()
        with stop.DelayedStop() as stops:
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
        chosen = chosen_ranks(ranks, self.size)
        with self._alone:
            done = self._execute({"kind": "call", "call": call}, chosen, record)
        return [loads_result(done[rank]["value"], rank, "the result") for rank in sorted(done)]

    def cell(
        self, source: str, ranks: Iterable[int] | None = None, *, record: bool = True
    ) -> Results | None:
        """Run a cell's source in every rank, as `%%ranks` does; returns what they show.

        Raises:
            SyntaxError: if it is no Python that can be compiled; nothing runs then.
            RankError: if it fails in a rank.
        """
        check_source(source)
        chosen = chosen_ranks(ranks, self.size)
        with self._alone:
            done = self._execute({"kind": "cell", "source": source}, chosen, record)
        shown = {rank: result for rank, result in done.items() if "repr" in result}
        return Results(shown) if shown else None

    def __getitem__(self, name: str) -> list[Any]:
        """The value of a name in every rank; however long the ranks take to pack it.

        Raises:
            ValueError: for what is no name, and while another thread's call runs.
            KeyError: if a rank does not have the name.
            RankError: if a rank died, or cannot send the value.
            RanksInterrupted: for a Stop.
        """
        check_name(name)
        with self._alone:
            self._ensure()
            answers = fetch(self.processes, name)
        missing = [rank for rank, answer in answers.items() if answer.get("missing")]
        if missing:
            life = self.processes.life
            advice = self._definitions.advice(name, min(missing), life, in_last=True)
            where = named(sorted(missing))
            message = f"{t('ranks.no_name', name=name, ranks=where)} {advice}".rstrip()
            raise NotInRanks(message, "" if advice else name)
        failed = {rank: a["error"] for rank, a in sorted(answers.items()) if "error" in a}
        if failed:
            words = "; ".join(f"{named([rank])}: {error}" for rank, error in failed.items())
            raise RankError(
                t("ranks.cannot_send", name=name, ranks=named(sorted(failed)), errors=words)
            )
        return [loads_result(answers[rank]["value"], rank, name) for rank in sorted(answers)]

    def restart(self) -> None:
        """Start the ranks afresh: new processes, no variables."""
        with stop.DelayedStop():
            self.stop()
            try:
                self._start()
            except KeyboardInterrupt:
                said = t("ranks.interrupted_starting")
                raise RanksInterrupted(f"{said} {self._again()}") from None

    def stop(self) -> None:
        """End the ranks. Cells may be run again after `restart()`."""
        if self.state != "stopped":
            self.processes.end("stopped")

    def show(self) -> None:
        """Show the live panel below the running cell, if somebody is there to see it.

        A panel is drawn where `Ranks` was made. After a reload of the page, or far below that
        cell, it can be had again; all that are drawn show the same.
        """
        self.observation.show()

    @property
    def state(self) -> str:
        """ "stopped", "starting", "ready", "running", or "lost": the next cell starts them."""
        return self.processes.state

    @property
    def pids(self) -> list[int]:
        """The process ids of the ranks."""
        return [pid for _, pid in sorted(self.processes.pids.items())]

    @property
    def agent(self) -> AgentProcess:
        """The process that starts the ranks of this notebook, and watches them."""
        return self.processes.agent

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
        dead = self.processes.dead
        backend = f", {self.processes.backend_device}" if self.state != "stopped" else ""
        if machines := dict.fromkeys(self.processes.machine_names()):
            backend += f" on {' and '.join(machines)}"
        died = f", {label(sorted(dead))} dead" if dead else ""
        return f"Ranks({self.size}{backend}, {self.state}{died})"

    def _ipython_display_(self) -> None:
        """As the last line of a cell: the panel, the state, and the cells to run again."""
        if not front_end_present() or self.observation.shown_in == notebook_cell():
            raise NotImplementedError  # IPython then uses _repr_pretty_
        from IPython.display import display

        self.show()
        display({"text/plain": self._described()}, raw=True)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self._described())

    def _described(self) -> str:
        alive = self.processes.life if self.state in ("ready", "running") else None
        cells = self._definitions.to_run_again(alive)
        heading = [t("ranks.run_again")] if cells else []
        return "\n".join([repr(self), *heading, *(f"  {cell}" for cell in cells)])

    # -- start ----------------------------------------------------------------------------------

    def _start(self) -> None:
        self.processes.start()
        self.observation.started()

    def _ensure(self) -> None:
        """Have ranks that can run a cell, or say why not."""
        processes = self.processes
        if self.state == "stopped":
            raise ValueError(f"{t('ranks.stopped')} {self._again()}")
        processes.receive(0)  # a rank may have died since the last cell
        if self.state == "ready" and (processes.dead or not processes.alive()):
            print(between_cells(processes))
            processes.end("lost")
        if self.state == "lost":
            AgentProcess.get()  # refuses where a machine of the job is gone
            print(t("ranks.started_afresh", ranks=named(list(range(self.size)))))
            with stop.DelayedStop():
                try:
                    self._start()
                except KeyboardInterrupt:
                    processes.state = "lost"
                    said = t("ranks.interrupted_starting")
                    raise RanksInterrupted(f"{said} {t('ranks.run_a_cell')}") from None

    def _again(self) -> str:
        """What gets stopped ranks going, by whatever name the learner knows them."""
        return t("ranks.again", new=f"ranks = Ranks({self.size})")

    # -- running --------------------------------------------------------------------------------

    def _execute(
        self, request: dict[str, Any], chosen: list[int], record: bool
    ) -> dict[int, dict[str, Any]]:
        """Run a request in ranks and wait for all of them; raises RankError if it went wrong."""
        self._ensure()
        processes = self.processes
        number = processes.next_number()
        marker = new_marker()
        request |= {
            "id": number,
            "record": record,
            "marker": marker,
            "filename": f"<ranks cell {number}>",
        }
        output = Output(chosen, marker, live=front_end_present())
        cell = RunningCell(processes, number, chosen, output, tick=self.observation.running)
        with stop.DelayedStop() as stops:  # `receive` is where a Stop is raised
            processes.listener = cell.take
            self.observation.cell_starts()
            processes.state = "running"
            try:
                for rank in chosen:
                    processes.send(rank, **request)
                cell.wait()
                cell.wait_for_output()
            except KeyboardInterrupt:
                cell.interrupt()
            finally:
                stops.ignore()
                processes.state = "ready" if self.state == "running" else self.state
                cell.output.finish()
                processes.listener = None
                records = [d["record"] for _, d in sorted(cell.done.items()) if d.get("record")]
                if records:
                    self.last = Run(records)
                fine = all("error" not in cell.done.get(rank, {"error": None}) for rank in chosen)
                self.observation.cell_ended(cell, records, "done" if fine else "failed")
                if "source" in request:
                    self._definitions.note(request["source"], chosen, processes.life)
            try:
                judge(cell)
            except (RankError, RanksInterrupted) as error:
                self._advise(error)
                if fine:  # every rank ended well, but not in step with the others
                    self.observation.cell_ended(cell, records, "failed")
                raise
        return cell.done

    def _advise(self, error: RankError | RanksInterrupted) -> None:
        """Say which cell defined the names that ranks did not find, and what is lost."""
        missing: dict[str, str] = {}
        for rank, failure in sorted(getattr(error, "failures", {}).items()):
            if name := undefined_name(failure):
                life = self.processes.life
                missing.setdefault(name, self._definitions.advice(name, rank, life))
        for advice in filter(None, missing.values()):
            error.add_note(advice)
        if self.state == "lost":
            self._definitions.last_lost_ranks()
            if self._definitions.to_run_again(None):
                error.add_note(t("ranks.which_again"))


def _not_started(size: int) -> str:
    """What is left after a Stop while ranks started, and how to go on."""
    if _default is None or _default.state == "stopped":
        return t("ranks.not_up", size=size)
    return t("ranks.not_up_other", size=size, other=repr(_default))
