"""The order of the folders (`.importlinter`) is true: imports go downwards, none in a circle."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

CONTRACTS = Path(__file__).resolve().parents[1] / ".importlinter"


def test_imports_go_downwards(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))  # it adds the folder to look into
    status = lint_imports(config_filename=str(CONTRACTS), no_cache=True)
    assert status == 0, capsys.readouterr().out
