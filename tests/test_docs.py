"""The pages for contributors name files, commands and targets of make that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dlcourse.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "README.ko.md", "ARCHITECTURE.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "CONTRIBUTING.ko.md")),
    *(ROOT / "hub" / name for name in ("README.md", "README.ko.md")),
    ROOT / "notebooks" / "source" / "README.md",
]
PATH = re.compile(r"`([\w./]+(?:/|\.(?:py|toml|md)))`|\]\(([\w./]+)\)")
PATTERN = re.compile(r"NAME|NN|results")  # stands for a name


def lost_files(text: str) -> list[str]:
    """Paths in a page with which no path of the project ends."""
    found = [
        path
        for top in ("cluster", "data", "dlcourse", "docs", "hub", "tests", "notebooks")
        for path in (ROOT / top).rglob("*")
    ]
    ends = "\n".join(f"/{path.relative_to(ROOT)}" for path in [*found, *ROOT.glob("*")]) + "\n"
    names = {first or second for first, second in PATH.findall(text)}
    return sorted(
        name for name in names if f"/{name.rstrip('/')}\n" not in ends and not PATTERN.search(name)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_is_there(page):
    assert lost_files(page.read_text(encoding="utf-8")) == []


def test_a_file_that_is_gone_is_found():
    text = "`collectives/ring.py`, `tree.py`, `parallel/gone.py`, [here](MISSING.md), `panel/`"
    assert lost_files(text) == ["MISSING.md", "parallel/gone.py"]


def test_every_command_that_a_page_names_is_there(capsys):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.M))
    commands = set(re.findall(r"(?:`|bin/)dlcourse ([a-z-]+)", text))
    assert "new-lesson" in commands and commands - known == set()
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"`make (\w+)", text)) <= set(re.findall(r"^(\w+):", makefile, re.M))


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
def test_what_a_teacher_should_buy_follows_from_the_record(page):
    """The table is the record's, and the figures of one learner and of thirty are made of it."""
    text = (ROOT / "hub" / page).read_text(encoding="utf-8")
    rows = json.loads((ROOT / "data" / "classroom.json").read_text())["rows"]
    for row in rows:
        line = f"| {row['learners']} | {row['seconds']:.0f} | {row['cpu_s']:.0f} "
        assert f"{line}| {row['memory'] / 1e9:.1f} |" in text
        assert row["passed"] == row["same"] == row["learners"] and not row["left"]
    several = [row for row in rows if row["learners"] > 1]
    memory = max(row["memory"] / row["learners"] for row in several) / 1e9
    seconds = max(row["cpu_s"] / row["learners"] for row in several)
    said = " ".join(text.split())
    assert re.search(rf"\b{memory:.1f} ?GB(?: and|와) .*?\b{seconds:.0f} ?(?:seconds|초)", said)
    gigabytes, cores = map(int, re.search(r"\*\*(\d+) GB\D+(\d+)", said).groups())
    assert 30 * memory + 2 < gigabytes
    wait = re.search(r"(?:about|약) (\d+) ?(?:minutes|분)", said)
    assert int(wait[1]) == round(30 * seconds / cores / 60)
