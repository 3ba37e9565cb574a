"""Ranks on several machines: under a real Slurm, by torchrun, and who may speak to the notebook.

The two machines are network namespaces with addresses of their own (`slurm.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import zmq
from slurm import Network, Slurm, needed

from dlcourse.cli import parsed
from dlcourse.course import submit
from dlcourse.course.job import Job
from dlcourse.ranks import machines
from dlcourse.ranks.channel import Channel
from dlcourse.ranks.machines import Machines
from dlcourse.ranks.messaging import MessageClient, MessageServer

pytestmark = pytest.mark.engine
REPOSITORY = Path(__file__).resolve().parents[1]
DLCOURSE = [sys.executable, "-m", "dlcourse.cli"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    needed()
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def variables(slurm: Slurm) -> dict[str, str]:
    shared = slurm.place / "shared"
    return {"DLCOURSE_SHARED": str(shared), "DLCOURSE_LANG": "en", "PYTHONPATH": str(REPOSITORY)}


def left_running() -> list[str]:
    """What tests of this worker have left: the soak's jobs may run beside it, in another one."""
    marks = ("PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER")
    ours, found = [os.environ.get(mark) for mark in marks], []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line, variables = " ".join(process.cmdline()), process.environ()
            if [variables.get(mark) for mark in marks] == ours and (
                "dlcourse.ranks.agent.follower" in line or "dlcourse.cli job" in line
            ):
                found.append(line)
    return found


IN_A_JOB = """
import json, socket, sys
from dlcourse import Ranks

with Ranks(4) as ranks:
    said = {"repr": repr(ranks)}
    ranks.cell("import os, socket\\nhost = socket.gethostname()")
    ranks.cell("gloo = os.environ['GLOO_SOCKET_IFNAME']")
    ranks.cell("total = torch.ones(1) * rank\\ndist.all_reduce(total)\\ntotal = total.item()")
    for name in ("host", "gloo", "total"):
        said[name] = ranks[name]
    for name, source in (
        ("raised", "if rank == 3:\\n    raise ValueError('no')\\ndist.barrier()"),
        ("waits", "if rank != 1:\\n    dist.barrier()"),
        ("killed", "if rank == 2:\\n    os.kill(os.getpid(), 9)\\ndist.barrier()"),
    ):
        try:
            ranks.cell(source)
        except Exception as error:
            said[name] = str(error)
    ranks.cell("afresh = rank")
    said["afresh"] = ranks["afresh"]
with Ranks(1) as one:  # as many as one machine has
    said["one"] = repr(one)
json.dump(said, open(sys.argv[1], "w"))
"""


def test_ranks_of_a_job_are_on_all_its_nodes_and_failures_name_them(slurm: Slurm):
    script, result = slurm.place / "in_a_job.py", slurm.place / "in_a_job.json"
    script.write_text(IN_A_JOB)
    command = f"{sys.executable} {script} {result}"
    job, out = slurm.submit(command, "-N2", "--cpus-per-task=2", **variables(slurm))
    slurm.until(lambda: slurm.gone(job))
    assert result.exists(), out.read_text() + slurm.logs()
    said = json.loads(result.read_text())
    assert said["repr"] == "Ranks(4, cpu on alpha and beta, ready)"
    assert said["host"] == ["alpha", "alpha", "beta", "beta"]
    assert said["gloo"] == ["fabric0"] * 4
    assert said["total"] == [6.0] * 4
    assert "rank 3 raised ValueError: no" in said["raised"]
    assert "rank 3 (beta)" in said["raised"] and "0-1 (alpha), 2 (beta)" in said["raised"]
    assert "rank 1 never reached barrier" in said["waits"]
    assert "rank 2 was killed by SIGKILL" in said["killed"] and "rank 2 (beta)" in said["killed"]
    assert said["afresh"] == [0, 1, 2, 3]
    assert said["one"] == "Ranks(1, cpu, ready)"
    assert not list((slurm.place / "shared").iterdir()), "keys are left"
    assert not left_running()


LOSES_A_MACHINE = """
import sys, time
from pathlib import Path
from dlcourse import Ranks

ranks, place = Ranks(4), Path(sys.argv[1])
(place / "ready").touch()
for source in ("import time\\ntime.sleep(120)", "1"):
    started = time.time()
    try:
        ranks.cell(source)
    except Exception as error:
        (place / f"said{len(source)}").write_text(f"{time.time()} {error}")
"""


def test_a_lost_machine_is_named_and_the_others_end(slurm: Slurm):
    place = slurm.place / "lost"
    place.mkdir()
    (place / "script.py").write_text(LOSES_A_MACHINE)
    command = f"{sys.executable} {place}/script.py {place}"
    job, _ = slurm.submit(command, "-N2", "--no-kill", "--cpus-per-task=2", **variables(slurm))
    slurm.until((place / "ready").exists)
    assert left_running(), "it sees what runs"
    try:
        slurm.network.unplug("beta")
        pulled = time.time()
        slurm.until(lambda: len(list(place.glob("said*"))) == 2)
        first, second = (f.read_text() for f in sorted(place.glob("said*"), reverse=True))
        when, _, words = first.partition(" ")
        assert "ranks 2-3 (beta) lost: the machine gives no sign any more" in words, words
        assert "cannot start again" in words
        # 6 s without a sign, and the machine that runs the tests may be busy.
        assert float(when) - pulled < 30
        assert "beta: the machine gives no sign any more" in second
    finally:
        slurm.network.plug("beta")
        slurm.run("scancel", job)
    slurm.until(lambda: slurm.run("sinfo", "-h", "-N", "-o", "%T").count("idle") == 2, 180)
    assert not left_running()


def submitted(slurm: Slurm, *options: str) -> tuple[int, str, Path]:
    out = slurm.place / f"out{time.monotonic_ns()}"
    command = [*DLCOURSE, "submit", *options, "--nodes", "2", "--ranks-per-node", "2"]
    done = subprocess.run(
        [*command, "--lang", "en", "--out", str(out)],
        env=slurm.env | {"PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr, out


def test_a_submitted_lesson_comes_back(slurm: Slurm):
    status, said, out = submitted(slurm, "00")
    (folder,) = out.iterdir()
    logs = "".join(f.read_text() for f in (folder / "log").glob("*.err"))
    assert status == 0, said + logs
    assert "RUNNING alpha,beta" in said and "00_start: passed" in said
    report = json.loads((folder / "00_start.en.json").read_text())
    assert report["passed"] and report["parameters"]["num_ranks"] == 4
    notebook = nbformat.read(folder / "00_start.en.ipynb", as_version=4)
    assert "beta" in str(notebook.cells)
    assert sorted(f.name for f in (folder / "ranks").iterdir())[0] == "rank-0.log"
    assert folder.stat().st_mode & 0o077 == 0
    assert not (folder / "channel" / "channel.json").exists(), "keys are left"
    assert not left_running()


def test_a_job_that_slurm_starts_again_goes_on_with_the_next_lesson(slurm: Slurm):
    """Requeued: what has passed is not run again."""
    folder = slurm.place / "again"
    folder.mkdir()
    (folder / "00_start.en.json").write_text(json.dumps({"passed": True}))
    run = f"run 00 --lang en --ranks 4 --out {folder} --resume --no-progress"
    command = f"srun --cpus-per-task=2 {' '.join(DLCOURSE)} job {folder}/channel -- {run}"
    job, _ = slurm.submit(
        f"cd {REPOSITORY}; {command}",
        "-N2",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        **variables(slurm),
    )
    slurm.until(lambda: slurm.gone(job))
    told = [json.loads(x) for x in (folder / "progress.jsonl").read_text().splitlines()]
    assert [(t["lesson"], t["state"]) for t in told] == [("00_start", "passed before")]
    assert (folder / "channel" / "ended-0").read_text() == "0"


def test_what_slurm_refuses_is_said_in_a_line(slurm: Slurm):
    status, said, _ = submitted(slurm, "00", "--partition", "none")
    assert status == 2
    assert "dlcourse submit: Slurm takes no job: " in said and "invalid partition" in said
    assert "Traceback" not in said
    status, said, _ = submitted(slurm, "00", "--minutes", "0")
    assert (status, said) == (2, "dlcourse submit: minutes=0: give a number from 1 on\n")


def test_two_machines_by_torchrun(tmp_path: Path):
    """No Slurm: one command on each machine, which find each other at the first one's address."""
    needed()
    run = ["run", "00", "--lang", "en", "--ranks", "4", "--out", str(tmp_path), "--no-progress"]
    clean = {n: v for n, v in os.environ.items() if not n.startswith("SLURM")}
    with Network(("gamma", "delta")) as network:
        first = network.addresses["gamma"]
        processes = [
            subprocess.Popen(
                [
                    *network.inside(node), sys.executable, "-m", "torch.distributed.run",
                    "--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1",
                    f"--master-addr={first}", "--master-port=29517",
                    "-m", "dlcourse.cli", "job", str(tmp_path / "channel"), "--", *run,
                ],
                env=clean | {"PYTHONPATH": str(REPOSITORY), "DLCOURSE_LANG": "en"},
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number, node in enumerate(network.nodes)
        ]  # fmt: skip
        said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert json.loads((tmp_path / "00_start.en.json").read_text())["passed"], said
    assert "delta" in (tmp_path / "00_start.en.ipynb").read_text()
    assert not left_running()


# ------------------------------------------------------------------------------ which machines


def test_as_many_ranks_on_each_machine():
    three = Machines(("a", "b", "c"))
    assert [three.used_for(n) for n in (1, 2, 3, 4, 6, 7)] == [1, 2, 3, 2, 3, 1]


def test_a_shell_on_a_login_node_is_refused_in_words(tmp_path: Path, monkeypatch):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\nprintf 'alpha\\nbeta\\n'\n")
    scontrol.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in (("JOB_ID", "7"), ("JOB_NUM_NODES", "2"), ("JOB_NODELIST", "x")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    with pytest.raises(ValueError, match=r"SLURM_JOB_NODELIST=alpha,beta: .*Start it there: `srun"):
        machines.of_this_run()
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert len(machines.of_this_run().names) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"DLCOURSE_NODES": "two"}, "DLCOURSE_NODES='two': with DLCOURSE_JOIN it must be"),
        ({"DLCOURSE_NODES": "2"}, "DLCOURSE_INTERFACE: name the interface"),
        ({"DLCOURSE_NODES": "2", "DLCOURSE_INTERFACE": "nil0"}, "'nil0': has no IPv4 address here"),
        ({"DLCOURSE_NODES": "2", "DLCOURSE_JOIN": "/nowhere"}, "must be a folder that all"),
    ],
)
def test_what_cannot_be_joined_is_refused(given, words, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("DLCOURSE_JOIN", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        machines.of_this_run()


def test_a_machines_part_has_a_number_and_a_folder_of_its_own(tmp_path: Path):
    with pytest.raises(ValueError, match=r"node=None, nodes=None: start it with srun or torchrun"):
        Job(tmp_path, ["run", "00"])
    with pytest.raises(ValueError, match=r"node=2, nodes=2"):
        Job(tmp_path, ["run", "00"], 2, 2)
    with pytest.raises(ValueError, match="give `run` and its arguments"):
        Job(tmp_path, ["lab"], 0, 2)
    (tmp_path / "ended-0").touch()
    with pytest.raises(ValueError, match="a run has ended there; give a new one"):
        Job(tmp_path, ["run", "00"], 1, 2)


def test_a_rank_without_a_number_of_ranks_tells_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="start it with srun or torchrun"):
        Job(tmp_path, ["run", "00"])


def test_half_a_line_of_another_machine_is_told_when_it_is_whole(tmp_path: Path):
    progress, said = tmp_path / "progress.jsonl", []
    assert submit._tell_new(tmp_path, 0, said.append) == 0
    whole = '{"lesson": "00_start", "state": "passed"}\n'
    progress.write_text(whole + '{"lesson": "01_coll')
    told = submit._tell_new(tmp_path, 0, said.append)
    assert (told, said) == (1, ["00_start: passed"])
    progress.write_text(whole + '{"lesson": "01_coll' + whole + whole)  # a full disk, then room
    assert submit._tell_new(tmp_path, told, said.append) == 3
    assert said == ["00_start: passed"] * 2


def test_the_commands_of_the_guide_are_understood():
    """Each `dlcourse job … -- run …` in cluster/README.md, torchrun's own options before it."""
    for page in ("README.md", "README.ko.md"):
        text = " ".join((REPOSITORY / "cluster" / page).read_text().replace("\\\n", " ").split())
        found = re.findall(r"dlcourse(?:\.cli)? (job \S+ [^`]*?-- run [^`]*?--ranks 8)", text)
        assert len(found) == 2, page
        for line in found:
            args, unknown = parsed(line.split())
            run, more = parsed(args.run_command)
            assert (unknown, more) == ([], []) and run.command == "run" and run.ranks == 8, line
            assert "--nodes" not in line or (args.nodes, args.node) == (2, 0), line


# ------------------------------------------------------------------------------- who may speak


@pytest.fixture
def listening() -> Iterator[tuple[MessageServer, Channel, list]]:
    heard: list = []
    server = MessageServer(lambda identity, message: heard.append((identity, message)))
    try:
        yield server, server.bind_network("127.0.0.1"), heard
    finally:
        server.close()


def client(channel: Channel, tmp_path: Path) -> MessageClient:
    channel.save(tmp_path / "channel.json")
    return MessageClient(str(tmp_path / "channel.json"), b"1:0")


def heard_soon(heard: list) -> bool:
    limit = time.monotonic() + 60
    while not heard and time.monotonic() < limit:
        time.sleep(0.01)
    return bool(heard)


def test_who_has_the_keys_is_heard(listening, tmp_path: Path):
    _, channel, heard = listening
    client(channel, tmp_path).send("hello", number=7)
    assert heard_soon(heard)
    assert heard == [(b"1:0", {"kind": "hello", "number": 7})]


class Evil:
    """What runs where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.mark.parametrize("keys", ["none", "own", "only the server's"])
def test_who_has_not_the_keys_is_not_even_unpickled(keys, listening, tmp_path: Path):
    _, channel, heard = listening
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    if keys != "none":
        public, secret = zmq.curve_keypair()
        other, _ = zmq.curve_keypair()
        server = other if keys == "own" else channel.server.encode()
        for option, key in (
            (zmq.CURVE_SERVERKEY, server),
            (zmq.CURVE_PUBLICKEY, public),
            (zmq.CURVE_SECRETKEY, secret),
        ):
            socket.setsockopt(option, key)
    socket.connect(channel.address)
    for _ in range(50):
        socket.send(pickle.dumps(Evil(tmp_path / "evil")))
    time.sleep(0.5)
    good = client(channel, tmp_path)
    good.send("hello")
    assert heard_soon(heard)
    assert [message["kind"] for _, message in heard] == ["hello"]
    assert not (tmp_path / "evil").exists()
    context.destroy(linger=0)


def test_what_a_listener_has_recorded_is_of_no_use_again(listening, tmp_path: Path):
    """A replay: the bytes of a client with the keys, sent once more, are not heard."""
    import socket as plain
    import threading

    _, channel, heard = listening
    host, _, port = channel.address.removeprefix("tcp://").rpartition(":")
    recorded: list[bytes] = []
    between = plain.create_server(("127.0.0.1", 0))

    def listen_in() -> None:
        theirs, _ = between.accept()
        ours = plain.create_connection((host, int(port)))

        def pass_on(source: plain.socket, target: plain.socket, keep: bool) -> None:
            while data := source.recv(1 << 16):
                if keep:
                    recorded.append(data)
                target.sendall(data)

        threading.Thread(target=pass_on, args=(ours, theirs, False), daemon=True).start()
        pass_on(theirs, ours, True)

    threading.Thread(target=listen_in, daemon=True).start()
    tapped = Channel(
        f"tcp://127.0.0.1:{between.getsockname()[1]}",
        channel.server,
        channel.client,
        channel.secret,
    )
    client(tapped, tmp_path).send("hello")
    assert heard_soon(heard)
    again = plain.create_connection((host, int(port)))
    for data in recorded:
        again.sendall(data)
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(heard) == 1 and recorded


def test_malformed_frames_change_nothing(listening, tmp_path: Path):
    """4,000 connections with noise here, 100,000 of more kinds in `make soak`.

    libzmq keeps 2,000 events that nobody reads, and then lets nobody in any more.
    """
    import random
    import socket as plain

    _, channel, heard = listening
    host, _, port = channel.address.removeprefix("tcp://").rpartition(":")
    noise = random.Random(0)
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
    before = len(psutil.Process().net_connections())
    for number in range(4000):
        with plain.create_connection((host, int(port)), timeout=60) as connection:
            start = greeting if number % 2 else b""
            with contextlib.suppress(OSError):
                connection.sendall(start + noise.randbytes(noise.randrange(1, 300)))
    client(channel, tmp_path).send("hello")
    assert heard_soon(heard)
    assert [message["kind"] for _, message in heard] == ["hello"]
    limit = time.monotonic() + 60
    while len(psutil.Process().net_connections()) > before + 10 and time.monotonic() < limit:
        time.sleep(0.1)
    assert len(psutil.Process().net_connections()) <= before + 10


def test_keys_are_for_their_owner_alone(listening, tmp_path: Path):
    _, channel, _ = listening
    path = tmp_path / "below" / "channel.json"
    channel.save(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert Channel.load(path) == channel
    path.chmod(0o640)
    with pytest.raises(ValueError, match="only you can read"):
        Channel.load(path)


# ------------------------------------------------------------------------------- interrupted


def test_a_run_that_is_interrupted_keeps_what_it_has(tmp_path: Path):
    """Slurm's signal before it takes the machines away: notebook and JSON up to there are left."""
    command = [*DLCOURSE, "run", "00", "--lang", "en", "--out", str(tmp_path), "--no-progress"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )
    notebook, limit = tmp_path / "00_start.en.ipynb", time.monotonic() + 400
    while time.monotonic() < limit:
        if notebook.exists() and "ranks 0-" in notebook.read_text():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(120) == 130
    report = json.loads((tmp_path / "00_start.en.json").read_text())
    assert report["error"] == "interrupted" and not report["passed"]
    assert any(cell.get("execution_count") for cell in nbformat.read(notebook, 4).cells)
