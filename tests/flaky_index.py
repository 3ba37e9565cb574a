"""An index of packages on this machine whose connection breaks off in the middle of a file."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


def write_wheel(folder: Path, name: str, version: str, needs: str = "", size: int = 0) -> Path:
    """A package with one module, ``size`` bytes of payload and at most one requirement."""
    info = f"{name}-{version}.dist-info"
    requires = f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{name}.bin": "x" * size,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        record.append(f"{path},sha256={digest.decode()},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    target = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return target


@contextmanager
def index(wheels: list[Path], breaks: int) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Serve the wheels; the first ``breaks`` answers with a large file end half-way.

    Gives the address and a growing list of what was sent: each file's name and its first byte.
    """
    sent: list[tuple[str, int]] = []
    left = breaks

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal left
            found = [w for w in wheels if w.name.replace("+", "%2B") in self.path]
            if not found:
                project = self.path.strip("/").rpartition("/")[2]
                names = [w.name for w in wheels if w.name.startswith(f"{project}-")]
                links = [f'<a href="/{n.replace("+", "%2B")}">{n}</a>' for n in names]
                page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
                self._answer(200 if names else 404, page, {"Content-Type": "text/html"})
                return
            content, first = found[0].read_bytes(), 0
            headers = {"Accept-Ranges": "bytes", "ETag": '"one"'}
            if asked := self.headers.get("Range"):
                first = int(asked.removeprefix("bytes=").partition("-")[0])
                headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            sent.append((found[0].name, first))
            rest = content[first:]
            if left and len(content) > 100_000:
                left -= 1
                self._answer(206 if asked else 200, rest, headers, only=len(rest) // 2)
                self.close_connection = True
            else:
                self._answer(206 if asked else 200, rest, headers)

        def _answer(
            self, status: int, body: bytes, headers: dict[str, str], only: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:only])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        server.server_close()
