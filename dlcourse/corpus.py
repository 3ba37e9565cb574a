"""Text to train on that every machine has: the Python standard library's own sources, as bytes.

Nothing is downloaded. A byte is a token, so the vocabulary has 256 entries and there is no
tokenizer to explain. ``data="my.txt"`` takes a file of yours instead. ``KindsCorpus`` has three
kinds of text: that code, and what this course itself says in English and in Korean.

This module imports torch only where it hands out a batch, so that the notebook kernel can check a
path with ``check_corpus`` before any rank starts.
"""

from __future__ import annotations

import os
import stat
import sysconfig
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT_LIMIT = 4 * 1024 * 1024
# Not the standard library itself, or hardly Python that anyone would want to read
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idlelib"}


def check_corpus(data: str | os.PathLike[str] | None = None, *, block: int = 128) -> None:
    """Raise a ``ValueError`` of one sentence where ``data`` cannot be trained on.

    Reads ``block + 1`` bytes and imports no torch.

    Args:
        data: a file; ``None`` is the standard library's sources.
        block: tokens in a sequence; a sequence and its targets need one byte more.
    """
    _check_whole("block", block)
    if data is None:
        if next(_standard_library_files(), None) is None:
            raise ValueError(
                "this Python has no standard-library sources to train on: "
                "give a text file of your own with data='path/to/file.txt'"
            )
        return
    try:
        path = Path(data).expanduser()
        mode = path.stat().st_mode
        # Opening a pipe would wait for a writer, so only a regular file is opened
        size = len(_first_bytes(path, block + 1)) if stat.S_ISREG(mode) else 0
    except FileNotFoundError:
        raise ValueError(
            f"data={str(data)!r} does not exist: check the path "
            f"(relative paths start at {os.getcwd()!r})"
        ) from None
    except OSError as error:
        raise ValueError(
            f"data={str(data)!r} cannot be read ({error.strerror}): check its permissions, "
            "or give another file"
        ) from None
    except (TypeError, ValueError, RuntimeError):  # not a string, a zero byte, an unknown ~user
        raise ValueError(
            f"data={data!r} is not a path: give the path of a text file, or None for the default"
        ) from None
    if stat.S_ISDIR(mode):
        raise ValueError(f"data={str(data)!r} is a directory: give the path of one file inside it")
    if not stat.S_ISREG(mode):
        raise ValueError(f"data={str(data)!r} is not a regular file: copy its text into one")
    if size == 0:
        raise ValueError(f"data={str(data)!r} is empty: give a file with text in it")
    if size <= block:
        raise ValueError(
            f"data={str(data)!r} has only {size} bytes: one sequence of block={block} tokens "
            f"needs {block + 1}, so give a longer text or a smaller block"
        )


class Corpus:
    """Bytes of text, and the batches of every training step.

    Args:
        data: a file; ``None`` is the standard library's sources.
        limit: read at most this many bytes, into memory.
        seed: which sequences the steps get.

    Raises:
        ValueError: the file is missing, empty, too short, unreadable, or a directory.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | None = None,
        *,
        limit: int = DEFAULT_LIMIT,
        seed: int = 0,
    ) -> None:
        if type(limit) is not int or limit < 2:
            raise ValueError(f"limit={limit!r} is not allowed: give a number of bytes, 2 or more")
        _check_whole("seed", seed, least=0)
        check_corpus(data, block=1)
        self.seed = seed
        if data is None:
            self.bytes = _standard_library(limit)
        else:  # read, not mapped: an editor that shortens a mapped file ends the process
            text = _first_bytes(Path(data).expanduser(), limit)
            self.bytes = np.frombuffer(text, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def batch(
        self,
        step: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int = 4,
        block: int = 128,
    ) -> tuple[Tensor, Tensor]:
        """One rank's part of the batch of a training step, and what comes next at each position.

        The whole batch of a step has ``world_size * micro_batch`` sequences. They depend on
        ``step``, ``seed`` and that product alone: 4 ranks with 8 sequences each get the rows of
        1 process with 32, in order, so both must compute the same update.

        Returns:
            tokens and targets, int64, each of shape (micro_batch, block).
        """
        for name, value in (("world_size", world_size), ("micro_batch", micro_batch)):
            _check_whole(name, value)
        _check_whole("rank", rank, least=None)
        if not 0 <= rank < world_size:
            raise ValueError(
                f"rank={rank} is not one of world_size={world_size} ranks: "
                f"give 0 to {world_size - 1}"
            )
        _check_whole("step", step, least=None)
        if step < 0:
            raise ValueError(f"step={step} is not allowed: steps count from 0")
        random = np.random.default_rng((self.seed, step))
        starts = self._starts(random, world_size * micro_batch, block)
        return _tokens(self.bytes, starts[rank * micro_batch : (rank + 1) * micro_batch], block)

    def _starts(self, random: np.random.Generator, size: int, block: int) -> np.ndarray:
        """Where each sequence of a step's whole batch begins."""
        _check_block(block, len(self))
        return random.integers(0, len(self) - block, size=size)


KINDS = ("code", "english", "korean")
_PIECE = 4096  # bytes; of every ten pieces of a text the last is held out


class KindsCorpus(Corpus):
    """Code, English and Korean in equal parts: row ``i`` of a step's batch is of kind ``i % 3``.

    Code is the standard library's; English and Korean are what this course's notebooks said when
    ``data/architectures.json`` was recorded. Every tenth piece of each text is held out: no batch
    has it, ``held_out`` has nothing else.

    Args:
        limit: use at most this many bytes of a kind.
        seed: which sequences the steps get.

    Attributes:
        train_bytes, held_out_bytes: how many there are, by kind.

    Raises:
        ValueError: there is too little text of a kind.
    """

    def __init__(self, *, limit: int = 1024 * 1024, seed: int = 0) -> None:
        super().__init__(limit=limit, seed=seed)
        texts = {"code": self.bytes} | {kind: _course_text(kind) for kind in KINDS[1:]}
        train, self._held_out = [], {}
        for kind, text in texts.items():
            text = text[:limit]
            if len(text) < 10 * _PIECE:
                raise ValueError(
                    f"there are only {len(text)} bytes of {kind} to train on: give a limit of "
                    f"{10 * _PIECE} or more, and install the course with its notebooks"
                )
            held_out = np.arange(len(text)) // _PIECE % 10 == 9
            train.append(text[~held_out])
            self._held_out[kind] = text[held_out]
        self.bytes = np.concatenate(train)
        self._ends = np.cumsum([len(text) for text in train])
        self.train_bytes = {kind: len(text) for kind, text in zip(KINDS, train, strict=True)}
        self.held_out_bytes = {kind: len(text) for kind, text in self._held_out.items()}

    def _starts(self, random: np.random.Generator, size: int, block: int) -> np.ndarray:
        kinds = np.arange(size) % len(KINDS)
        first = self._ends - list(self.train_bytes.values())
        _check_block(block, min(self.train_bytes.values()))
        return random.integers(first[kinds], self._ends[kinds] - block)

    def kinds(self, *, rank: int = 0, micro_batch: int = 6) -> Tensor:
        """Which of ``KINDS`` each row of ``batch`` is: int64, shape (micro_batch,)."""
        import torch

        _check_whole("rank", rank, least=0)
        _check_whole("micro_batch", micro_batch)
        return (torch.arange(micro_batch) + rank * micro_batch) % len(KINDS)

    def held_out(
        self, kind: str, *, sequences: int = 32, block: int = 128
    ) -> tuple[Tensor, Tensor]:
        """Tokens and targets that training never sees: the same at each call, spread evenly.

        Raises:
            ValueError: no such kind, or more than the text has.
        """
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r} is unknown: give one of {', '.join(KINDS)}")
        text = self._held_out[kind]
        _check_whole("sequences", sequences, least=None)
        _check_block(block, len(text))
        if not 1 <= sequences <= len(text) // (block + 1):
            raise ValueError(
                f"sequences={sequences} of {block + 1} bytes are not in {len(text)} held-out bytes "
                f"of {kind}: give 1 to {len(text) // (block + 1)}"
            )
        return _tokens(text, np.linspace(0, len(text) - block - 1, sequences).astype(int), block)


def course_folder() -> Path:
    """Where ``notebooks/`` and ``data/`` are: a wheel carries them inside the package."""
    package = Path(__file__).resolve().parent
    installed = package / "_course"
    return installed if installed.is_dir() else package.parent


def sequences_per_rank(batch_size: int, *, world_size: int = 1, accumulate: int = 1) -> int:
    """What ``micro_batch`` of ``Corpus.batch`` has to be for ``batch_size`` over all ranks.

    Raises:
        ValueError: ranks and micro-batches cannot have equal parts of the batch.
    """
    _check_whole("world_size", world_size)
    _check_whole("accumulate", accumulate)
    _check_whole("batch_size", batch_size, least=None)
    if batch_size < 1 or batch_size % (world_size * accumulate):
        raise ValueError(
            f"batch_size={batch_size} cannot be split over {world_size} ranks with "
            f"accumulate={accumulate}: give a multiple of {world_size * accumulate}"
        )
    return batch_size // world_size


def _check_whole(name: str, value: Any, *, least: int | None = 1) -> None:
    """Refuse what is no whole number, or one below ``least``. NumPy's are as good as Python's."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        more = "" if least is None else f" of {least} or more"
        raise ValueError(f"{name}={value!r} is not allowed: give a whole number{more}")


def _check_block(block: int, size: int) -> None:
    _check_whole("block", block, least=None)
    if not 1 <= block < size:
        raise ValueError(
            f"block={block} does not fit a text of {size} bytes: "
            f"give 1 to {size - 1}, or a longer text"
        )


def _tokens(text: np.ndarray, starts: np.ndarray, block: int) -> tuple[Tensor, Tensor]:
    """Tokens, and what comes next at each position."""
    import torch  # here, because the kernel imports this module and must stay small

    rows = text[starts[:, None] + np.arange(block + 1)]
    sequences = torch.from_numpy(rows.astype(np.int64))
    return sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def _standard_library_files() -> Iterator[Path]:
    """The sources in an order that does not depend on the file system."""
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py"):
                yield Path(folder, name)


@lru_cache(maxsize=4)
def _standard_library(limit: int) -> np.ndarray:
    parts, size = [], 0
    for path in _standard_library_files():
        try:
            parts.append(path.read_bytes())
        except OSError:  # a broken link in a distribution's packaging
            continue
        size += len(parts[-1])
        if size >= limit:
            break
    return np.frombuffer(b"".join(parts)[:limit], dtype=np.uint8)


@lru_cache(maxsize=2)
def _course_text(kind: str) -> np.ndarray:
    """What the course said in one language on the day of ``data/architectures.json``.

    A copy, made by ``dlcourse bench architectures --renew-text``: lessons change, and a recorded
    loss means nothing beside one of another text.
    """
    path = course_folder() / "data" / "course_text" / f"{kind}.txt"
    return np.frombuffer(path.read_bytes(), dtype=np.uint8)
