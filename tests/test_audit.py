"""The audit of the tested versions, against a database of our own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci/audit.py"
ADVISORY = {
    "id": "PYSEC-0-0",
    "summary": "made up",
    "affected": [
        {
            "package": {"name": "numpy", "ecosystem": "PyPI"},
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999"}]},
            ],
        }
    ],
}


@contextmanager
def database(vulnerable: str, asked: list[Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(query)
            name = query["package"]["name"]
            body = json.dumps({"vulns": [ADVISORY]} if name == vulnerable else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


def audit(url: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--osv-url", url, "--cache-dir", str(tmp_path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("vulnerable", ["numpy", "nothing of ours"])
def test_a_version_with_an_advisory_is_named(vulnerable, tmp_path):
    asked: list[Any] = []
    with database(vulnerable, asked) as url:
        done = audit(url, tmp_path)
    assert done.returncode == (vulnerable == "numpy"), done.stdout + done.stderr
    assert ("PYSEC-0-0: mended in 9999" in done.stdout) == (vulnerable == "numpy")
    # Each pinned package was asked for, by its own version.
    versions = {query["package"]["name"]: query["version"] for query in asked}
    pinned = [
        line.split(";")[0].strip().split("==")
        for line in (SCRIPT.parents[1] / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    assert len(pinned) > 100
    for name, version in pinned:
        name = name.lower().replace("_", "-").replace(".", "-")
        assert name not in versions or versions[name] == version
    missing = {p[0].lower().replace("_", "-").replace(".", "-") for p in pinned} - versions.keys()
    assert missing <= {"appnope"}, missing  # of other systems


def test_a_database_that_is_not_reached_is_said(tmp_path):
    done = audit("http://127.0.0.1:9/v1/query", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "were not audited, the database is not reached" in done.stdout


def test_another_failure_of_the_audit_is_one(tmp_path):
    command = [sys.executable, str(SCRIPT), "--no-such-option"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "--no-such-option" in done.stdout
