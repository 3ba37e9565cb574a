"""A rank: runs cells and functions in its main thread, while a second one answers the notebook."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from dlcourse.collectives import connection
from dlcourse.measure.recorder import Recorder
from dlcourse.ranks.display import in_words
from dlcourse.ranks.messaging import rank_identity
from dlcourse.ranks.os_processes import end_with_parent
from dlcourse.ranks.pickling import dumps_result
from dlcourse.ranks.worker import setup
from dlcourse.ranks.worker.cell import new_namespace, run_cell
from dlcourse.ranks.worker.connections import Connections, keep_descriptors
from dlcourse.ranks.worker.control import Control
from dlcourse.ranks.worker.failure import MESSAGE_LIMIT, explained
from dlcourse.ranks.worker.flight_recorder import FlightRecorder
from dlcourse.ranks.worker.forks import end_fork
from dlcourse.ranks.worker.interrupt import Interrupt
from dlcourse.ranks.worker.waits import Waits
from dlcourse.ranks.worker.whereabouts import Whereabouts

TRIM_AFTER = 0.2  # seconds; shorter cells have not taken much, and stay quick


def main(request: dict[str, Any]) -> None:
    """The entry point that torch elastic calls in each rank."""
    Worker(request).serve()


class Worker:
    """One rank of a pool: its namespace, its process group and what it answers the notebook."""

    def __init__(self, request: dict[str, Any]) -> None:
        launcher = request["launcher"]
        end_with_parent()
        if os.getppid() != launcher:  # it was ended before it could take us with it
            os._exit(1)
        self.rank = int(os.environ["RANK"])
        self.size = int(os.environ["WORLD_SIZE"])
        self.pid = os.getpid()
        self.request = request
        directory = Path(request["directory"])
        setup.redirect_output(directory, self.rank)
        setup.wait_for_siblings(directory)
        self.interrupt = Interrupt()
        # The agent ends ranks with SIGKILL. Caught, for what is ignored stays so in what we start.
        signal.signal(signal.SIGTERM, lambda *_: None)
        setup.fork_as_a_notebook_does()
        setup.prefer_as_victim()
        torch.set_num_threads(request["threads"])
        self.generation = 0
        waits = Waits()
        waits.install()
        self.collectives = FlightRecorder()
        self.whereabouts = Whereabouts(self.collectives, waits)
        faulthandler.disable()  # elastic enables it; a crash is explained by the notebook's side
        self.store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=60),
        )
        self.connections = Connections()
        self.device = self._device()
        self.recorder = Recorder(self.rank, self.size)
        self.control = Control(
            request["address"],
            rank_identity(request["pool"], self.rank),
            launcher,
            interrupt=self.interrupt,
            connections=self.connections,
            whereabouts=self.whereabouts,
            recorder=self.recorder,
        )
        self.namespace = new_namespace(self.rank, self.size, self.device)

    def _device(self) -> torch.device:
        kind = self.request["device"]
        if kind == "cuda":
            local = int(os.environ["LOCAL_RANK"])
            device = torch.device("cuda", local % torch.cuda.device_count())
            torch.cuda.set_device(device)
            return device
        return torch.device(kind)

    def join(self) -> None:
        """Make the default process group, or make it anew after its connections were cut."""
        if dist.is_initialized():
            if self.collectives.under_way():  # the old group would wait for their ends
                self.connections.cut()
            dist.destroy_process_group()
        self.generation += 1
        self.connections.were_cut = False
        self.whereabouts.forget()
        timeout = timedelta(seconds=self.request["timeout"])
        # Groups that the learner makes of these ranks wait as long, not torch's half an hour.
        dist.distributed_c10d.default_pg_timeout = timeout
        dist.distributed_c10d.default_pg_nccl_timeout = timeout
        dist.init_process_group(
            self.request["backend"],
            store=dist.PrefixStore(f"group{self.generation}", self.store),
            rank=self.rank,
            world_size=self.size,
            timeout=timeout,
        )
        assert dist.group.WORLD is not None
        self.collectives.world = dist.group.WORLD.group_name
        keep_descriptors()

    def _meet(self) -> None:
        """Wait for the ranks of the other machines, which are started when rank 0 is up."""
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        as_first = {name: self.request[name] for name in ("device", "backend")}
        if self.rank == 0:
            self.control.send("up", meeting=address, **as_first)
        self.store.set(f"up{self.rank}", "")
        self.store.wait([f"up{rank}" for rank in range(self.size)], timedelta(seconds=180))

    def serve(self) -> None:
        """Connect, then run what the notebook asks for until it says stop."""
        self.control.start()
        try:
            if self.request["nodes"] > 1:
                self._meet()
            self.join()
        except Exception:
            self.control.send("failed", text=traceback.format_exc())
            time.sleep(60)
            return
        # From here on modules are found where the notebook finds them: in its folder first.
        sys.path[:] = self.request["path"]
        self.control.send("ready", pid=os.getpid(), device=str(self.device))
        while True:
            message = self.control.inbox.get()
            kind = message["kind"]
            if kind == "join":
                self._answer(message, self.join)
            elif kind == "value" and message["name"] not in self.namespace:
                self.control.send("answer", id=message["id"], missing=True)
            elif kind == "value":
                self._answer(message, partial(self.namespace.get, message["name"]))
            else:
                self._run(message)

    def _answer(self, message: dict[str, Any], action: Callable[[], Any]) -> None:
        try:
            try:
                self.interrupt.running = message["id"]  # it may take long, and be interrupted
                value = dumps_result(action())
            finally:
                self.interrupt.running = None
        except BaseException as error:
            words = in_words(error, str, MESSAGE_LIMIT)
            self.control.send("answer", id=message["id"], error=f"{type(error).__name__}: {words}")
        else:
            self.control.send("answer", id=message["id"], value=value)

    def _run(self, message: dict[str, Any]) -> None:
        """Run one cell or function and report how it ended."""
        record = message["record"]
        outcome: dict[str, Any] = {"id": message["id"]}
        started = time.monotonic()
        self.whereabouts.waits.begin()
        self.interrupt.raised = False
        self.interrupt.running = message["id"]
        try:
            if record:
                self.recorder.start()
            elif self.recorder.ledger is not None:
                self.recorder.ledger.unseen = True
            if message["kind"] == "cell":
                outcome |= run_cell(message["source"], message["filename"], self.namespace)
            else:
                function, args, kwargs = cloudpickle.loads(message["call"])
                outcome["value"] = dumps_result(function(*args, **kwargs))
        except BaseException as error:
            # From here on an interrupt comes too late: no call may stand before this line, or the
            # signal is handled in that call, outside the `try`, and ends the rank.
            self.interrupt.running = None
            outcome["error"] = explained(error, cut=self.connections.were_cut)
            if os.getpid() != self.pid:
                end_fork(error, outcome["error"]["traceback"])
            outcome["error"]["interrupted"] &= self.interrupt.raised
            # A cell may have destroyed the group; the next one may mean to make its own.
            gone = self.whereabouts.waits.leaves_any() or not dist.is_initialized()
            outcome["error"]["group_broken"] |= gone
            connection.give_up()
        self.interrupt.running = None
        if os.getpid() != self.pid:
            end_fork()
        outcome["wall_s"] = time.monotonic() - started
        try:
            if record:
                outcome["record"] = self.recorder.stop()
        except KeyboardInterrupt:
            pass
        except Exception as error:  # the recorder's fault must not end the rank
            outcome.setdefault("error", explained(error, cut=self.connections.were_cut))
        outcome |= self.whereabouts.calls()
        setup.flush_output(message["marker"])
        setup.save_coverage()
        self.control.send("done", **outcome)
        if outcome["wall_s"] > TRIM_AFTER:
            setup.give_memory_back()
