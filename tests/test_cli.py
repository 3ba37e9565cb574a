"""The command line as a user meets it: its own process, exit status, one sentence for bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dlcourse.cli import lab_arguments, lab_environment, main
from dlcourse.course import catalog


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
        (["lab", "--lang", "fr"], "choose one of: ko, en"),
        (["bench", "nothing"], "nothing named 'nothing' to measure: choose from"),
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
    status, out, _ = run("build", "--check")
    assert status == 1 and f"notebooks/source/97_demo.py:{line}: stale translation" in out
    assert f"accepted: notebooks/source/97_demo.py:{line}\n" in run("build", "--hash", "97")[1]
    assert "stale" not in run("build", "--check")[1]


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_lessons_and_claims_are_listed(lang, capsys):
    assert main(["lessons", "--lang", lang]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(catalog.LESSONS)
    assert main(["claims", "--lang", lang]) == 0
    assert capsys.readouterr().out.startswith("A1  ")


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m dlcourse.cli claims | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("text", ["3", "03", 3, "03_data_parallel", "data_parallel", " 03.ipynb"])
def test_a_lesson_may_be_named_in_several_ways(text, tmp_path):
    folder = tmp_path / "notebooks" / "source"
    folder.mkdir(parents=True)
    for name in ("03_data_parallel", "13_memory_anatomy"):
        (folder / f"{name}.py").write_text("")
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
    ours, theirs = lab_environment()["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    overrides = json.loads(Path(ours, "labconfig/default_setting_overrides.json").read_text())
    assert "Markdown Preview" in str(overrides) and theirs == "/mine"
