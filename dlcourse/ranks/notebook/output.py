"""What ranks print: whole lines tagged by rank, whatever the ranks write and however much."""

from __future__ import annotations

import re
import secrets
import sys
from typing import TextIO

from dlcourse.ranks.display import shorten
from dlcourse.ranks.messaging import STREAMS

HEAD_LINES = 200  # lines of one rank and stream shown as they come
TAIL_LINES = 20  # lines kept for the end when there are more
LINE_LIMIT = 2000  # characters of one line
_TAIL_BYTES = 1 << 16
# With its own line break, unless that ends a line that was not ended.
_MARKER = re.compile(rb"(?<=[^\n])\0[0-9a-f]{24}|\0[0-9a-f]{24}\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]")


def new_marker() -> bytes:
    """What a rank writes at the end of a cell's output, and no program by chance."""
    return b"\0%s\n" % secrets.token_hex(12).encode()


class Stream:
    """One output of one rank during one cell: cuts it into lines and finds its end."""

    def __init__(self, rank: int, marker: bytes) -> None:
        self.rank = rank
        self.marker = marker
        self.ended = False
        self.lines = 0  # lines taken out so far
        self.skipped = 0  # lines left out
        self._buffer = b""
        self._tail = b""

    def feed(self, data: bytes) -> list[str]:
        """Take bytes, give the whole lines that may be shown now."""
        self._buffer += data
        end = self._buffer.find(self.marker)
        if end >= 0:
            self.ended = True
            chunk, self._buffer = self._buffer[:end], b""
            if chunk and not chunk.endswith(b"\n"):
                chunk += b"\n"
        else:
            # Bytes that may be the beginning of the mark stay until more arrive.
            cut = self._buffer.rfind(b"\n") + 1
            if len(self._buffer) - cut > 4 * LINE_LIMIT:
                cut = _whole(self._buffer, len(self._buffer) - len(self.marker))
            chunk, self._buffer = self._buffer[:cut], self._buffer[cut:]
        return self._split(chunk)

    def _split(self, chunk: bytes) -> list[str]:
        chunk = _MARKER.sub(b"", chunk)  # of a cell before, which has not waited so long for it
        shown: list[str] = []
        while chunk and self.lines < HEAD_LINES:
            line, _, chunk = chunk.partition(b"\n")
            shown.append(_printable(line))
            self.lines += 1
        if chunk:
            self.skipped += chunk.count(b"\n")
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
        return shown

    def finish(self) -> list[str]:
        """The lines to show at the end: how much was left out, and the last lines."""
        shown = self._split(self._buffer + b"\n") if self._buffer else []
        self._buffer = b""
        if self.skipped:
            tail = _from_whole(self._tail).rstrip(b"\n").split(b"\n")[-TAIL_LINES:]
            left_out = self.skipped - len(tail)
            if left_out > 0:
                shown.append(f"… {left_out:,} lines left out …")
            shown += [_printable(line) for line in tail]
        self.skipped, self._tail = 0, b""
        return shown


def _printable(line: bytes) -> str:
    """A line of text from any bytes: a carriage return starts over, control bytes are shown."""
    text = line.rstrip(b"\r").decode("utf-8", errors="replace").rpartition("\r")[2]
    text = _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)
    return shorten(text, LINE_LIMIT)


def _whole(data: bytes, cut: int) -> int:
    """The place at or before `cut` where no UTF-8 character is cut in two."""
    for back in range(min(4, cut)):
        if data[cut - back] & 0xC0 != 0x80:  # not the inside of a character
            return cut - back
    return cut  # no UTF-8


def _from_whole(data: bytes) -> bytes:
    """The same bytes from their first whole UTF-8 character on."""
    inside = next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
    return data[inside:]


class Output:
    """The outputs of all ranks of one cell; live as they come, or in rank order at the end."""

    def __init__(self, ranks: list[int], marker: bytes, *, live: bool) -> None:
        self.live = live
        self._streams = {(rank, name): Stream(rank, marker) for rank in ranks for name in STREAMS}
        self._held: dict[tuple[int, str], list[str]] = {key: [] for key in self._streams}

    def feed(self, rank: int, name: str, data: bytes) -> None:
        """Take what a rank wrote."""
        stream = self._streams.get((rank, name))
        if stream is None:  # a rank that does not take part in this cell, from a thread it left
            return
        lines = stream.feed(data)
        if self.live:
            _print(rank, name, lines)
        else:
            self._held[rank, name] += lines

    def ended(self, rank: int) -> bool:
        """Whether all that this rank wrote in the cell has arrived."""
        return all(self._streams[rank, name].ended for name in STREAMS)

    def finish(self) -> None:
        """Show what is left, rank by rank."""
        for (rank, name), stream in self._streams.items():
            _print(rank, name, self._held[rank, name] + stream.finish())
            self._held[rank, name] = []

    def last_words(self, rank: int) -> list[str]:
        """The end of what a rank wrote to its standard error."""
        stream = self._streams.get((rank, "err"))
        if stream is None:
            return []
        return [x for x in self._held[rank, "err"] + stream.finish() if x.strip()][-5:]


def _print(rank: int, name: str, lines: list[str]) -> None:
    if not lines:
        return
    target: TextIO = sys.stdout if name == "out" else sys.stderr
    target.write("".join(f"[rank {rank}] {line}\n" for line in lines))
    target.flush()
