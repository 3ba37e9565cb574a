"""`hub/jupyterhub_config.py`: two learners at once, and what one can reach of the other's.

A real JupyterHub, two real Unix users, a kernel with ranks for each. The second one tries, both
from its kernel and as a plain process of the machine, what the first one's processes are asked to
keep for themselves. root looks up the names and ports for it: nothing is refused because it could
not be found.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from browser import alive, until

from dlcourse.course import singleuser

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / "hub" / "jupyterhub_config.py"
PATIENCE = 600
SHARED = ("/tmp", "/var/tmp", "/dev/shm", "/run")
LISTENS = "0A"  # TCP_LISTEN in the kernel's include/net/tcp_states.h
USERS = ("dlc-test-a", "dlc-test-b")
pytestmark = pytest.mark.timeout(1500)

spec = importlib.util.spec_from_file_location("class_list", CONFIG.with_name("class_list.py"))
class_list = importlib.util.module_from_spec(spec)
spec.loader.exec_module(class_list)


# ------------------------------------------------------------------------------- the class list


def test_a_home_that_is_full_does_not_shut_its_learner_out(tmp_path, monkeypatch, capsys):
    """Only in their server can they remove something."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "00_start.ipynb")

    before = os.umask(0o022)
    os.umask(before)
    monkeypatch.setattr(singleuser.learner_copy, "copy_lessons", full)
    try:
        assert singleuser.prepare(tmp_path)["JUPYTER_RUNTIME_DIR"].startswith(str(tmp_path))
    finally:
        os.umask(before)
    assert "lessons are not copied: [Errno 28] No space left" in capsys.readouterr().err


def test_a_password_is_printed_once_and_kept_as_its_hash(tmp_path):
    path = tmp_path / "class.csv"
    passwords = class_list.add(path, ["mina", "jun"], "ko")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not [word for word in passwords.values() if word in path.read_text()]
    for name, password in passwords.items():
        assert class_list.is_right(path, name, password)
    assert not class_list.is_right(path, "mina", passwords["jun"])
    assert not class_list.is_right(path, "nobody-here", "")
    again = class_list.add(path, ["mina"], "en")
    assert class_list.is_right(path, "mina", again["mina"])
    assert not class_list.is_right(path, "mina", passwords["mina"])
    assert class_list.is_right(path, "jun", passwords["jun"])
    assert {name: one.lang for name, one in class_list.read(path).items()} == {
        "mina": "en",
        "jun": "ko",
    }


def test_a_class_list_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "class.csv"
    class_list.add(path, ["mina"], "ko")
    path.chmod(0o640)
    with pytest.raises(ValueError, match="chmod 600"):
        class_list.is_right(path, "mina", "x")


@pytest.mark.parametrize("name", ["root", "nobody/../x", "", "Mina", "-x", "daemon"])
def test_no_user_of_the_system_is_a_learner(name, tmp_path):
    with pytest.raises(ValueError, match="name="):
        class_list.add(tmp_path / "class.csv", [name], "ko")


# -------------------------------------------------------------------------------- a hub for real


def needed() -> str:
    """Why no hub with users can be started here; "" where one can."""
    if importlib.util.find_spec("jupyterhub") is None:
        return "needs JupyterHub: pip install 'dlcourse[hub]'"
    if os.geteuid() != 0:
        return "makes Unix users: needs root"
    for program in ("useradd", "userdel", "unshare", "setpriv", "nsenter"):
        if shutil.which(program) is None:
            return f"needs {program}"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        return "gets no namespaces on this machine"
    return ""


def shut_folders(*needed: Path) -> dict[Path, list[Path]]:
    """Folders that no user may enter, above what the hub's users need; the needed ones by folder.

    Only of a test machine whose Python or checkout is root's own, such as ~/.pyenv.
    """
    found: dict[Path, list[Path]] = {}
    for path in needed:
        for folder in reversed(path.parents):
            if not folder.stat().st_mode & 0o001:
                found.setdefault(folder, []).append(path)
                break
    return found


def opened(shut: dict[Path, list[Path]], aside: Path) -> str:
    """A shell's commands that let users in, in a mount namespace of the hub's own."""
    lines, number = ["set -e"], 0
    for folder, paths in shut.items():
        places = {}
        for path in dict.fromkeys(paths):
            places[path] = aside / str(number)
            number += 1
            lines += [f"mkdir {places[path]}", f"mount --rbind '{path}' {places[path]}"]
        lines.append(f"mount -t tmpfs -o mode=755 tmpfs '{folder}'")
        for path, place in places.items():
            lines += [f"mkdir -p '{path}'", f"mount --rbind {place} '{path}'"]
    return "\n".join([*lines, 'exec "$@"'])


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def owned(user: int, *places: str) -> list[str]:
    """Files and folders of a user below these places; folders before what is in them."""
    found = []
    for top in places:
        for folder, folders, files in os.walk(top):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):
                    if os.lstat(path).st_uid == user:
                        found.append(path)
    return found


class Hub:
    """A hub with the course's configuration, and the two users; ports and files of its own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.passwords = class_list.add(place / "class.csv", [USERS[0]], "ko")
        self.passwords |= class_list.add(place / "class.csv", [USERS[1]], "en")
        public, api, own = free_ports(3)
        self.url = f"http://127.0.0.1:{public}"
        config = place / "config.py"
        config.write_text(
            f"load_subconfig({str(CONFIG)!r})\n"
            f"c.JupyterHub.bind_url = {self.url!r}\n"
            f"c.JupyterHub.hub_port = {own}\n"
            f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{api}'\n"
            # hypothetical systemd of the test machine would start servers outside the namespace
            "c.JupyterHub.spawner_class = 'jupyterhub.spawner.LocalProcessSpawner'\n"
        )
        aside = place / "aside"
        aside.mkdir()
        python = Path(sys.executable).parent
        packages = [Path(p) for p in sys.path if p and Path(p).is_dir()]
        shut = shut_folders(REPOSITORY, Path(sys.base_prefix), python.parent, *packages)
        self.log = (place / "hub.log").open("w+")
        command = ["unshare", "--mount", "sh", "-c", opened(shut, aside), "sh"]
        command += [sys.executable, "-m", "jupyterhub", "-f", str(config)]
        variables = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JUPYTER", "DLCOURSE_", "IPYTHON", "PYTEST"))
        }
        self.process = psutil.Popen(
            command,
            cwd=place,
            env=variables | {"DLCOURSE_HUB": str(place)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def said(self) -> str:
        return (self.place / "hub.log").read_text()[-8000:]

    def up(self) -> bool:
        import requests

        assert self.process.poll() is None, self.said()
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/hub/api/", timeout=10).status_code == 200
        return False

    def close(self) -> None:
        """End the hub, which ends its servers; then the users, and whatever they still run."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(psutil.TimeoutExpired):
                self.process.wait(60)
        self.log.close()
        for name in USERS:
            with contextlib.suppress(KeyError):
                user = pwd.getpwnam(name)
                for process in psutil.process_iter():
                    with contextlib.suppress(psutil.Error):
                        if process.uids().real == user.pw_uid:
                            process.kill()
                for path in reversed(owned(user.pw_uid, *SHARED)):  # what a killed torch leaves
                    with contextlib.suppress(OSError):
                        (os.rmdir if os.path.isdir(path) else os.unlink)(path)
                subprocess.run(["userdel", "--remove", "--force", name], capture_output=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            self.process.kill()


class Person:
    """Somebody with a browser: logs in, starts their server, opens a notebook, runs cells."""

    def __init__(self, hub: Hub, name: str) -> None:
        import requests

        self.hub, self.name = hub, name
        self.session = requests.Session()

    def log_in(self, password: str) -> bool:
        page = f"{self.hub.url}/hub/login"
        self.session.get(page, timeout=PATIENCE)
        form = {"username": self.name, "password": password, "_xsrf": self.session.cookies["_xsrf"]}
        answer = self.session.post(page, data=form, timeout=PATIENCE, allow_redirects=False)
        return answer.status_code == 302

    def start_server(self) -> None:
        """By the hub's page, as the learner's browser does, and a token for what follows."""
        headers = {"X-XSRFToken": self.session.cookies["_xsrf"], "Referer": f"{self.hub.url}/hub/"}
        user = f"{self.hub.url}/hub/api/users/{self.name}"
        post = {"headers": headers, "timeout": PATIENCE}
        answer = self.session.post(f"{user}/tokens", json={"note": "test"}, **post)
        assert answer.ok, answer.text
        self.token = answer.json()["token"]
        self.headers = {"Authorization": f"token {self.token}"}
        answer = self.session.post(f"{user}/server", json={}, **post)
        assert answer.ok, answer.text

        def ready() -> bool:
            state = self.session.get(user, headers=self.headers, timeout=PATIENCE).json()
            assert state["servers"] or state["pending"], self.hub.said()
            return bool(state["servers"] and state["servers"][""]["ready"])

        assert until(ready, PATIENCE), self.hub.said()

    def api(self, method: str, path: str, **given: Any) -> Any:
        import requests

        url = f"{self.hub.url}/user/{self.name}/api/{path}"
        return requests.request(method, url, headers=self.headers, timeout=PATIENCE, **given)

    def open(self, path: str) -> None:
        """Open a notebook: its kernel starts."""
        wanted = {"path": path, "name": "", "type": "notebook", "kernel": {"name": "python3"}}
        answer = self.api("POST", "sessions", json=wanted)
        assert answer.status_code == 201, (answer.text, self.hub.said())
        self.kernel = answer.json()["kernel"]["id"]

    def run(self, code: str) -> str:
        """Run a cell; returns what it has printed.

        Raises:
            AssertionError: it has failed; with its traceback.
        """
        import websocket

        address = f"{self.hub.url.replace('http', 'ws')}/user/{self.name}/api/kernels"
        channel = websocket.create_connection(
            f"{address}/{self.kernel}/channels",
            header=[f"Authorization: token {self.token}"],
            timeout=PATIENCE,
        )
        asked = uuid.uuid4().hex
        header = {"msg_id": asked, "msg_type": "execute_request", "username": "", "session": asked}
        header |= {"version": "5.3", "date": "2026-01-01T00:00:00Z"}
        content = {"code": textwrap.dedent(code), "silent": False, "store_history": False}
        content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
        channel.send(json.dumps({**message, "channel": "shell", "buffers": []}))
        printed = ""
        try:
            while True:
                got = json.loads(channel.recv())
                if got["parent_header"].get("msg_id") != asked:
                    continue
                if got["msg_type"] == "stream" and got["content"]["name"] == "stdout":
                    printed += got["content"]["text"]
                assert got["msg_type"] != "error", "\n".join(got["content"]["traceback"])
                if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                    return printed
        finally:
            channel.close()

    # -- what the machine sees of them ------------------------------------------------------------

    @property
    def user(self) -> pwd.struct_passwd:
        return pwd.getpwnam(self.name)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.uids().real == self.user.pw_uid and alive(process):
                    found.append(process)
        return found

    def files(self) -> list[str]:
        """All that is theirs in their home and in the places that all share."""
        return owned(self.user.pw_uid, str(Path(self.user.pw_dir).parent), *SHARED)

    def listening(self) -> dict[str, list[Any]]:
        """Where their processes listen, in whatever network: TCP ports, and sockets' names."""
        ports, names = set(), set()
        for process in self.processes():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                place = Path(f"/proc/{process.pid}")
                own = {os.readlink(fd) for fd in (place / "fd").iterdir()}
                for table in ("tcp", "tcp6"):  # of its network, which may not be ours
                    for fields in lines(place / "net" / table):
                        if fields[3] == LISTENS and f"socket:[{fields[9]}]" in own:
                            ports.add(int(fields[1].rpartition(":")[2], 16))
                for fields in lines(place / "net" / "unix"):
                    if len(fields) == 8 and f"socket:[{fields[6]}]" in own:
                        names.add(fields[7])
        return {"ports": sorted(ports), "names": sorted(names)}

    def server(self) -> psutil.Process:
        """The Jupyter server that the hub has started for them."""
        found = (p for p in self.processes() if "jupyterhub.singleuser" in " ".join(p.cmdline()))
        return next(found)

    def doors(self) -> set[int]:
        """The ports at which that server answers the hub's proxy; it asks for a token."""
        return {c.laddr.port for c in self.server().net_connections("tcp") if c.status == "LISTEN"}


def lines(table: Path) -> list[list[str]]:
    """The fields of a table of /proc, without its head."""
    return [line.split() for line in table.read_text().splitlines()[1:]]


# Runs as the second user; prints what it could do, which is to be nothing.
TRIES = r"""
import json, os, signal, socket, sys
said = json.loads(GIVEN)
reached = []

def tried(what, call):
    try:
        call()
    except OSError:
        return
    reached.append(what)

def connect(family, address):
    with socket.socket(family) as one:
        one.settimeout(20)
        one.connect(address)

def pick(path):
    if os.path.isdir(path) and not os.path.islink(path):
        os.listdir(path)
    else:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))

for path in said["files"]:
    tried(f"read {path}", lambda: pick(path))
    tried(f"write {path}", lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)))
    tried(f"remove {path}", lambda: os.rename(path, path + ".gone"))
for port in said["ports"]:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        tried(f"connect to port {port}", lambda: connect(family, (host, port)))
for name in said["names"]:
    address = "\0" + name[1:] if name.startswith("@") else name
    tried(f"connect to {name}", lambda: connect(socket.AF_UNIX, address))
for pid in said["pids"]:
    for name in ("environ", "maps", "mem", "cwd", "root", "exe"):
        path = f"/proc/{pid}/{name}"
        link = name in ("cwd", "root", "exe")
        tried(path, lambda: os.readlink(path) if link else os.close(os.open(path, os.O_RDONLY)))
    tried(f"/proc/{pid}/fd", lambda: os.listdir(f"/proc/{pid}/fd"))
    tried(f"signal {pid}", lambda: os.kill(pid, signal.SIGCONT))
    tried(f"namespace of {pid}", lambda: os.close(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)))
print(json.dumps({"user": os.getuid(), "reached": reached}))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[Hub]:
    if reason := needed():
        root = os.geteuid() == 0
        (pytest.fail if os.environ.get("CI") and root else pytest.skip)(reason)
    hub = Hub(tmp_path_factory.mktemp("hub"))
    try:
        assert until(hub.up, PATIENCE), hub.said()
        yield hub
    finally:
        hub.close()


# Ranks with what they have in the middle of a lesson: a window between them, memory in a file of
# /dev/shm, files in /tmp. The socket's file goes when all ranks have come; so another, as it was.
POOL = """
from dlcourse import Ranks
from dlcourse.ranks.directories import new_directory
from dlcourse.ranks.messaging import MessageServer
channel = MessageServer(lambda identity, message: None)
_ = channel.bind(new_directory())
ranks = Ranks(2)
_ = ranks.cell('''
import tempfile
from dlcourse.collectives.shared import shared_all_reduce
shared_all_reduce(torch.ones(1000))
torch.multiprocessing.set_sharing_strategy("file_system")
shared = torch.zeros(1000).share_memory_()
file = tempfile.NamedTemporaryFile()
open(f"rank{rank}.txt", "w").close()
''')
"""


@pytest.fixture(scope="module")
def two(hub) -> tuple[Person, Person]:
    """Two learners at once, each with a lesson open, and two ranks in the middle of a run."""
    people = tuple(Person(hub, name) for name in USERS)
    for person in people:
        assert person.log_in(hub.passwords[person.name]), hub.said()
        person.start_server()
    for person, lang in zip(people, ("ko", "en"), strict=True):
        person.open(f"notebooks/{lang}/00_start.ipynb")
        person.run(POOL)
    return people


def test_a_wrong_password_opens_nothing(hub):
    for name, password in ((USERS[0], hub.passwords[USERS[1]]), (USERS[0], ""), ("root", "")):
        assert not Person(hub, name).log_in(password)


def test_each_learner_has_lessons_and_language_of_their_own(two):
    for person, lang in zip(two, ("ko", "en"), strict=True):
        said = person.run("import os; print(os.environ['DLCOURSE_LANG'], os.getuid(), os.getcwd())")
        home = Path(person.user.pw_dir)
        assert said.split() == [lang, str(person.user.pw_uid), str(home / "notebooks" / lang)]
        lesson = home / "notebooks" / lang / "03_data_parallel.ipynb"
        assert lesson.stat().st_uid == person.user.pw_uid
        shipped = REPOSITORY / "notebooks" / lang / lesson.name
        assert lesson.read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize("where", ["kernel", "process"])
def test_one_learner_reaches_nothing_of_the_others(where, hub, two):
    first, second = two
    targets = {
        "files": first.files(),
        "pids": [process.pid for process in first.processes()],
        **first.listening(),
    }
    # that the server itself lets nobody in is the next test
    targets["ports"] = [port for port in targets["ports"] if port not in first.doors()]
    assert len(targets["pids"]) >= 6, "server, kernel, agent, launcher, two ranks"
    assert len(targets["ports"]) >= 2 and len(targets["names"]) >= 3, targets
    for place in ("/tmp/dlc", "/dev/shm/torch_", f"{first.user.pw_dir}/notebooks/ko/"):
        assert any(path.startswith(place) for path in targets["files"]), place
    code = TRIES.replace("GIVEN", repr(json.dumps(targets)))
    if where == "kernel":
        said = second.run(code)
    else:
        user = second.user
        command = [
            "nsenter",
            f"--mount=/proc/{first.server().pid}/ns/mnt",
            "setpriv",
            "--clear-groups",
        ]
        command += [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", sys.executable, "-c", code]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(said)
    assert found["user"] == second.user.pw_uid
    assert found["reached"] == []
    for person in two:  # and all goes on
        assert person.run("print(ranks.size)") == "2\n"


def test_one_learner_is_not_let_into_the_others_server(hub, two):
    import requests

    first, second = two
    paths = ("contents", "kernels", f"kernels/{first.kernel}", "sessions", "terminals")
    there = [path for path in paths if first.api("GET", path).ok]
    assert len(there) >= 4, there
    for path in there:
        own = f"/user/{first.name}/api/{path}"
        addresses = [hub.url, *(f"http://127.0.0.1:{port}" for port in first.doors())]
        for address in addresses:
            for headers in (second.headers, {}):
                answer = requests.get(
                    address + own, headers=headers, allow_redirects=False, timeout=PATIENCE
                )
                assert answer.status_code in (302, 401, 403), (path, address, answer.status_code)
