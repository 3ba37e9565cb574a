"""The order of the folders (`.importlinter`) is true: imports go downwards, none in a circle."""

from __future__ import annotations

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

CONTRACTS = Path(__file__).resolve().parents[1] / ".importlinter"


def test_imports_go_downwards(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(CONTRACTS), no_cache=True)
    assert status == 0, capsys.readouterr().out
