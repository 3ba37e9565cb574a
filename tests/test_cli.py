"""The command line as a user meets it: its own process, exit status, one sentence for bad input."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from dlcourse import bench
from dlcourse.cli import lab_arguments, main
from dlcourse.course import catalog, serve


def dlcourse(*arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"DLCOURSE_ROOT": str(root)} if root else {})}
    return subprocess.run(
        [sys.executable, "-m", "dlcourse.cli", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "give one lesson, or --all"),
        (["run", "97", "--all"], "give one lesson, or --all"),
        (["run", "98"], "lesson '98' is unknown; choose one of: 97_demo"),
        (["run", "97", "--lang", "fr"], "lang='fr' is unknown; choose one of: ko, en"),
        (["run", "97", "--device", "tpu"], "choose one of: auto, cpu, cuda, mps"),
        (["run", "97", "--ranks", "0"], "ranks=0: give a number from 1 to"),
        (["run", "97", "--ranks", "four"], "invalid int value: 'four'"),
        (["run", "97", "--ranks", "100000"], "do not fit into this machine's memory; at most"),
        (["run", "97", "--steps", "0"], "steps=0"),
        (["run", "97", "--fast"], "unknown argument '--fast'"),
        (["run", "97"], "is not built: run `dlcourse build`"),
        (["build", "98"], "lesson '98' is unknown"),
        (["build", "--accept"], "--accept needs the lessons"),
        (["build", "--check", "--accept", "97"], "not allowed with"),
        (["claims", "--lang", "fr"], "choose one of: ko, en"),
        (["lessons", "--lang", "fr"], "choose one of: ko, en"),
        (
            ["scale", "06", "--micro-batch", str(10**16), "--lang", "en"],
            "micro_batch=10000000000000000: give at",
        ),
        (
            ["scale", "05", "--micro-batches", str(10**9), "--lang", "en"],
            "micro_batches=1000000000: give at most",
        ),
        (["scale", "06", "--lang", "fr"], "choose one of: ko, en"),
        (["lab", "--lang", "fr"], "choose one of: ko, en"),
        (["lab", "--port", "0"], "port=0: give a number from 1 to 65535"),
        (["lab", "--port", "x"], "invalid int value: 'x'"),
        (["bench", "nothing"], "nothing named 'nothing' to measure: choose from"),
        (["run", "--all", "--out", ""], "out='': give a folder"),
        (["submit", "97", "--out", ""], "out='': give a folder"),
        (["grade", ""], "DIR='': give a folder"),
        (["job", "", "--nodes", "2", "--node", "0", "--", "run", "97"], "FOLDER='': give a folder"),
        (["plan", "--out", "", "--lang", "en"], "out='': give a folder"),
        (["plan", "--calibrate", "", "--lang", "en"], "calibrate='': give a file"),
        (["submit", "--all", "--steps", "0"], "steps=0: give a number from 1 on"),
        (["submit", "97", "--gpus-per-node", "-1"], "gpus_per_node=-1: give a number from 0 on"),
        (["submit", "97", "--device", "mps"], "device='mps': choose one of: auto, cpu, cuda"),
        (["submit", "97"], "is not built: run `dlcourse build`"),
        (
            ["scale", "03", "--world", str(10**20), "--lang", "en"],
            "world=100000000000000000000: give at most",
        ),
        (["teach"], "invalid choice: 'teach'"),
        ([], "the following arguments are required: command"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(arguments, said, demo_root, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert said in error and error.count("\n") == 1


def test_an_option_that_the_lesson_does_not_have_is_refused(demo_root, capsys):
    source = catalog.source_path(demo_root, "97_demo")
    source.write_text(source.read_text(encoding="utf-8").replace("steps = 3\n", ""), "utf-8")
    main(["build"])
    assert main(["run", "97", "--steps", "2"]) == 2
    assert "no parameter for --steps" in capsys.readouterr().err


def test_the_command_of_a_real_process_agrees(demo_root):
    done = dlcourse("run", "98", root=demo_root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "dlcourse run: lesson '98' is unknown; choose one of: 97_demo\n"


def test_build_check_accept_as_commands(demo_root, capsys):
    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        return (status, *capsys.readouterr())

    status, out, err = run("build")
    assert "written: notebooks/ko/97_demo.ipynb" in out
    assert status == 1 and "no stored output" in err  # not executed yet
    source = catalog.source_path(demo_root, "97_demo")
    text = source.read_text(encoding="utf-8").replace("Four ranks hold", "Two ranks hold")
    source.write_text(text, encoding="utf-8")
    line = text.splitlines().index("# # 시험용 레슨")  # the marker stands a line before
    at = f"notebooks/source/97_demo/lesson.py:{line}"
    status, out, _ = run("build", "--check")
    assert status == 1 and f"{at}: stale translation" in out
    assert f"accepted: {at}\n" in run("build", "--hash", "97")[1]
    assert "stale" not in run("build", "--check")[1]


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_lessons_and_claims_are_listed(lang, capsys):
    assert main(["lessons", "--lang", lang]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == catalog.all_lessons(catalog.course_root())
    assert main(["claims", "--lang", lang]) == 0
    assert capsys.readouterr().out.startswith("A1  ")


def test_windows_is_told_at_once_what_works(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["lab"]) == main(["run", "00"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("On Windows it runs in WSL2" in line for line in said)
    with pytest.raises(OSError, match="On Windows it runs in WSL2"):
        from dlcourse import Ranks  # noqa: F401


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m dlcourse.cli claims | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["3", "03", 3, "03_data_parallel", "data_parallel", " 03.ipynb"])
def test_a_lesson_may_be_named_in_several_ways(text, tmp_path):
    for name in ("03_data_parallel", "13_memory_anatomy"):
        source = catalog.source_path(tmp_path, name)
        source.parent.mkdir(parents=True)
        source.write_text("")
    wanted = "03" if text == " 03.ipynb" else text
    assert catalog.find_lesson(wanted, tmp_path) == "03_data_parallel"


def test_a_planned_lesson_is_said_to_be_planned():
    planned = [
        n for n in catalog.LESSONS if n not in catalog.written_lessons(catalog.course_root())
    ]
    if not planned:
        pytest.skip("all lessons are written")
    with pytest.raises(ValueError, match="is not written yet"):
        catalog.find_lesson(planned[-1], catalog.course_root())


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_lab_opens_on_a_start_page_that_is_there(lang, monkeypatch):
    root = catalog.course_root()
    options = dict(option.removeprefix("--").split("=", 1) for option in lab_arguments(root, lang))
    page = options["LabApp.default_url"].removeprefix("/lab/tree/")
    text = Path(options["ServerApp.root_dir"], page).read_text(encoding="utf-8")
    assert text.startswith("# ") and "?" not in page
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "/mine")
    *_, ours, theirs = serve.lab_environment(lang)["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    overrides = json.loads(Path(ours, "labconfig/default_setting_overrides.json").read_text())
    assert "Markdown Preview" in str(overrides) and theirs == "/mine"


SCALE = ["scale", "03", "--model", "gpt2-large", "--world", "8", "--block", "64"]
ANSWERS = [
    pytest.param(SCALE, marks=pytest.mark.parity),  # a real step: not for `make quick`
    ["claims"],
    ["lessons"],
]


@pytest.fixture
def one_step(monkeypatch) -> None:
    """The command ``scale`` is asked four times, and takes its step once."""
    taken: dict[tuple[str, ...], subprocess.CompletedProcess[str]] = {}

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if tuple(command) not in taken:
            taken[tuple(command)] = subprocess.run(command, **options)
        return taken[tuple(command)]

    monkeypatch.setattr("dlcourse.plan.scale.subprocess", SimpleNamespace(run=run))


@pytest.mark.usefixtures("one_step")
@pytest.mark.parametrize("arguments", ANSWERS, ids=lambda arguments: arguments[0])
def test_a_command_answers_in_the_language_of_the_system_unless_told(
    arguments, capsys, monkeypatch
):
    def answer(system: str, *asked: str) -> str:
        monkeypatch.setenv("LC_ALL", system)
        monkeypatch.setattr("dlcourse.words.strings._chosen", None)
        assert main([*arguments, *asked]) == 0
        return re.sub(r"[\d.]+ s\b|[\d.]+ MiB", "", capsys.readouterr().out)

    english, korean = answer("en_US.UTF-8"), answer("ko_KR.UTF-8")
    assert english != korean
    assert answer("ko_KR.UTF-8", "--lang", "en") == english
    assert answer("en_US.UTF-8", "--lang", "ko") == korean


@pytest.mark.parametrize(
    "command", [["lessons"], ["claims"], ["build"], ["build", "--check"], ["run", "--all"], ["lab"]]
)
def test_a_folder_without_a_course_is_not_an_empty_course(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DLCOURSE_ROOT", str(tmp_path))
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path} holds no course" in said and said.count("\n") == 1


def test_a_folder_that_is_gone_is_one_sentence(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["run", "00", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "the folder that you are in has been removed" in said and said.count("\n") == 1


@pytest.mark.parametrize("option", ["--minutes", "--memory"])
def test_a_limit_beyond_all_machines_is_one_sentence(option, tmp_path, capsys):
    for amount in ("inf", "1e300", "nan", "-1", "0"):
        assert main(["grade", str(tmp_path), f"{option}={amount}"]) == 2
        said = capsys.readouterr().err
        assert f"{option[2:]}={float(amount)}: give a number above 0" in said
        assert said.count("\n") == 1


def test_a_full_disk_is_one_sentence(capsys, monkeypatch):
    def full(*_: object) -> list:
        raise OSError(28, "No space left on device", "notebooks/ko/00_start.ipynb")

    monkeypatch.setattr("dlcourse.course.build.build", full)
    assert main(["build"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: 'notebooks/ko" in said and said.count("\n") == 1


def test_a_language_that_is_neither_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("dlcourse.words.strings._chosen", None)
    monkeypatch.setenv("DLCOURSE_LANG", "fr")
    assert main(["claims"]) == 2
    said = capsys.readouterr().err
    assert "DLCOURSE_LANG='fr'" in said and said.count("\n") == 1


def test_a_terminal_without_korean_letters_is_no_error():
    command = [sys.executable, "-m", "dlcourse.cli", "lessons", "--lang", "ko"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("00_start")


def started(monkeypatch, *arguments: str) -> list[str]:
    """The options with which `dlcourse lab` would have replaced itself by JupyterLab."""
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda _, command, __: calls.append(command))
    main(["lab", *arguments])
    return calls[0][3:]


def test_lab_as_root_without_a_browser_says_how_it_is_reached(monkeypatch, capsys):
    monkeypatch.setattr(serve, "is_root", lambda: True)
    monkeypatch.setattr(serve, "has_browser", lambda: False)
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.9 50000 10.0.0.7 2222")
    options = started(monkeypatch, "--lang", "en", "--port", "9400")
    port = next(o.split("=")[1] for o in options if o.startswith("--ServerApp.port="))
    assert {"--allow-root", "--no-browser", "--ServerApp.ip=127.0.0.1"} <= {*options}
    assert not [o for o in options if "token" in o or "password" in o]
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("This runs as root") and said.count("root:") == 1
    assert f"ssh -N -p 2222 -L {port}:127.0.0.1:{port} " in said and "@10.0.0.7\n" in said
    assert f"http://127.0.0.1:{port}/lab/" in said


def test_lab_of_a_user_with_a_browser_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(serve, "is_root", lambda: False)
    monkeypatch.setattr(serve, "has_browser", lambda: True)
    options = started(monkeypatch, "--lang", "en")
    assert not {"--allow-root", "--no-browser"} & {*options}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("given", ["--ip=0.0.0.0", "--ServerApp.ip=0.0.0.0", "--no-browser"])
def test_an_option_of_the_users_takes_the_place_of_ours(given, monkeypatch):
    monkeypatch.setattr(serve, "has_browser", lambda: False)
    options = started(monkeypatch, given)
    name = given.partition("=")[0].replace("ServerApp.", "")
    assert [o for o in options if o.replace("ServerApp.", "").partition("=")[0] == name] == [given]


def test_a_user_without_a_name_is_no_error(monkeypatch):
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1234")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert " user@" in serve.tunnel(8888, {})


@pytest.mark.parametrize(
    ("platform", "environment", "browser"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"BROWSER": "firefox"}, True),
        ("linux", {"SSH_CONNECTION": "a 1 b 22"}, False),
        ("linux", {"SSH_CONNECTION": "a 1 b 22", "DISPLAY": "localhost:10"}, True),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "a 1 b 22"}, False),
    ],
)
def test_a_browser_is_where_somebody_would_see_it(platform, environment, browser, monkeypatch):
    monkeypatch.setattr("webbrowser.get", lambda: None)
    assert serve.has_browser(environment, platform) is browser


def test_another_port_where_the_first_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        if taken > 65000:
            pytest.skip("no room above")
        assert serve.free_port(taken) > taken


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    return {c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def test_lab_really_opens_beside_another_with_a_token_on_loopback_only(tmp_path):
    """As whoever runs the tests: as root, in a container, too."""
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "BROWSER")} | own
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        command = [sys.executable, "-m", "dlcourse.cli", "lab", "--lang", "en", f"--port={taken}"]
        command += ["--no-browser", "--ip=127.0.0.1", "--allow-root"]  # given and ours at once
        log = (tmp_path / "log").open("w+")
        lab = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            address = r"http://127\.0\.0\.1:(\d+)/lab/tree/notebooks/en/index\.md\?token=\w{20,}"
            limit = time.monotonic() + 300
            while not (found := re.search(address, (tmp_path / "log").read_text())):
                assert lab.poll() is None and time.monotonic() < limit, Path(log.name).read_text()
                time.sleep(0.2)
            port = int(found[1])
            # The system's table of connections may miss one while others come and go.
            while not (heard := listening(lab)) and time.monotonic() < limit:
                time.sleep(0.2)
            assert port != taken and heard == {("127.0.0.1", port)}
            with urllib.request.urlopen(found[0], timeout=60) as page:
                assert page.status == 200
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=60)
        finally:
            lab.terminate()
            lab.wait(60)
    said = (tmp_path / "log").read_text()
    assert f"-L {port}:127.0.0.1:{port} " in said
    assert ("This runs as root" in said) is serve.is_root()


def test_the_help_of_every_measurement_is_its_docstring_line_by_line(capsys):
    """Its examples once ran together into one line, and one named itself otherwise."""
    for name in bench.names():
        with pytest.raises(SystemExit):
            main(["bench", name, "--help"])
        help = capsys.readouterr().out
        assert help.startswith(f"usage: dlcourse bench {name} ")
        assert str(importlib.import_module(f"dlcourse.bench.{name}").__doc__).rstrip() in help
