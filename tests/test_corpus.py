"""The text: the same batches whoever asks, and one clear sentence for a bad file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from dlcourse import corpus as corpus_module
from dlcourse.bench._course_text import LANGUAGES, course_text
from dlcourse.corpus import (
    DEFAULT_LIMIT,
    KINDS,
    Corpus,
    KindsCorpus,
    check_corpus,
    course_folder,
    sequences_per_rank,
)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.bin"
    path.write_bytes(bytes(i * 7 % 251 for i in range(5000)))
    return path


def test_default_is_the_standard_library():
    corpus = Corpus()
    assert len(corpus) == DEFAULT_LIMIT
    text = bytes(corpus.bytes)
    first = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[0].read_bytes()
    assert text.startswith(first)
    assert text.count(b"import ") > 1000
    check_corpus()


def test_default_is_read_once():
    assert Corpus(limit=5000).bytes is Corpus(limit=5000).bytes


def test_default_does_not_depend_on_the_order_of_the_file_system(tmp_path, monkeypatch):
    names = ["b.py", "a.py", "z/c.py", "m/d.py", "site-packages/x.py", "test/y.py", "e.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "aa.py").symlink_to(tmp_path / "missing.py")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    walk = os.walk

    def shuffled(top):
        for folder, subfolders, files in walk(top):
            subfolders.reverse()
            files.reverse()
            yield folder, subfolders, files

    for listing in (walk, shuffled):
        monkeypatch.setattr(os, "walk", listing)
        assert bytes(Corpus(limit=99 + (listing is walk)).bytes) == b"a.pyb.pym/d.pyz/c.py"


def test_no_standard_library_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ValueError, match=r"no standard-library sources.*data="):
        Corpus(limit=77)


def test_targets_are_the_next_tokens(text):
    corpus = Corpus(text)
    tokens, targets = corpus.batch(3, micro_batch=5, block=32)
    assert tokens.shape == targets.shape == (5, 32)
    assert tokens.dtype == targets.dtype == torch.int64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal((tokens + 7) % 251, targets)  # the file counts in sevens


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 12])
def test_the_batch_of_a_step_is_the_same_for_any_number_of_ranks(text, world_size):
    corpus = Corpus(text)
    for step in (0, 1, 17):
        whole = corpus.batch(step, micro_batch=12, block=16)
        parts = [
            corpus.batch(
                step, rank=rank, world_size=world_size, micro_batch=12 // world_size, block=16
            )
            for rank in range(world_size)
        ]
        for i in (0, 1):
            assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


def test_steps_and_seeds_read_different_text(text):
    def tokens(step, seed):
        return Corpus(text, seed=seed).batch(step, micro_batch=8, block=16)[0]

    assert torch.equal(tokens(0, 0), tokens(0, 0))
    assert not torch.equal(tokens(0, 0), tokens(1, 0))
    assert not torch.equal(tokens(0, 0), tokens(0, 1))
    assert not torch.equal(tokens(1, 0), tokens(0, 1))


def test_every_position_can_be_drawn(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes(range(10)))
    starts = {int(row[0]) for step in range(20) for row in Corpus(path).batch(step, block=4)[0]}
    assert starts == {0, 1, 2, 3, 4, 5}  # a start at 5 uses bytes 5 to 9
    tokens, targets = Corpus(path).batch(0, block=9)
    assert tokens[0].tolist() == list(range(9))
    assert targets[0, -1] == 9


def test_a_limit_keeps_the_beginning(text):
    assert len(Corpus(text, limit=100)) == 100
    assert np.array_equal(Corpus(text, limit=100).bytes, Corpus(text).bytes[:100])


def test_home_directory(tmp_path, text, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(Corpus(f"~/{text.name}")) == 5000


def bad_files(tmp_path: Path) -> dict[str, tuple[object, str]]:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("x" * 128)
    os.mkfifo(tmp_path / "pipe")
    return {
        "missing": (tmp_path / "nowhere.txt", r"nowhere.txt' does not exist"),
        "under a file": (tmp_path / "short" / "x", r"cannot be read \(Not a directory\)"),
        "directory": (tmp_path, r"is a directory: give the path of one file"),
        "empty": (tmp_path / "empty", r"empty' is empty"),
        "short": (tmp_path / "short", r"has only 128 bytes: .*block=128 tokens needs 129"),
        "pipe": (tmp_path / "pipe", r"is not a regular file"),
        "number": (7, r"data=7 is not a path"),
        "unknown home": ("~nobody-here/x", r"is not a path"),
        "zero byte": ("a\0b", r"is not a path"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "missing",
        "under a file",
        "directory",
        "empty",
        "short",
        "pipe",
        "number",
        "unknown home",
        "zero byte",
    ],
)
def test_bad_file(tmp_path, case):
    data, message = bad_files(tmp_path)[case]
    with pytest.raises(ValueError, match=message) as caught:
        check_corpus(data)
    assert "\n" not in str(caught.value)
    if case != "short":  # too short for the default block, but not for a smaller one
        with pytest.raises(ValueError, match=message):
            Corpus(data)


def test_a_file_that_fails_while_it_is_read():
    if not Path("/proc/self/mem").exists():
        pytest.skip("needs Linux")
    with pytest.raises(ValueError, match=r"'/proc/self/mem' cannot be read \(Input/output error\)"):
        check_corpus("/proc/self/mem")


def test_a_file_without_permission(tmp_path):
    """In a child that gives up root, which may read everything."""
    path = tmp_path / "secret"
    path.write_text("x" * 1000)
    path.chmod(0)
    code = (
        "import os, sys\n"
        "from dlcourse.corpus import check_corpus\n"
        "os.geteuid() or os.seteuid(65534)\n"
        "try: check_corpus(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
    )
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "cannot be read (Permission denied)" in out.stdout, out.stderr


def test_checking_needs_no_torch():
    code = (
        "import sys\n"
        "from dlcourse.corpus import Corpus, check_corpus\n"
        "check_corpus(); Corpus()\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4, "world_size": 4}, r"rank=4 is not one of world_size=4 ranks: give 0 to 3"),
        ({"rank": -1}, r"rank=-1 is not one of"),
        ({"world_size": 0}, r"world_size=0 is not allowed"),
        ({"micro_batch": 0}, r"micro_batch=0 is not allowed"),
        ({"block": 0}, r"block=0 does not fit"),
        ({"block": 5000}, r"block=5000 does not fit a text of 5000 bytes: give 1 to 4999"),
    ],
)
def test_bad_batch(text, options, message):
    with pytest.raises(ValueError, match=message):
        Corpus(text).batch(0, **options)
    with pytest.raises(ValueError, match=r"step=-1 is not allowed"):
        Corpus(text).batch(-1)


def test_bad_limit():
    for limit in (0, 1, "4 MB"):
        with pytest.raises(ValueError, match="limit="):
            Corpus(limit=limit)


def test_sequences_per_rank():
    assert sequences_per_rank(24, world_size=4, accumulate=3) == 6
    for batch_size, accumulate in ((10, 1), (4, 3), (0, 1), (-4, 1)):
        with pytest.raises(ValueError, match=f"batch_size={batch_size} cannot be split over 4"):
            sequences_per_rank(batch_size, world_size=4, accumulate=accumulate)
    with pytest.raises(ValueError, match=r"accumulate=0 is not allowed"):
        sequences_per_rank(4, accumulate=0)


@pytest.mark.parametrize("number", [0, -2, 2.0, True, float("nan"), "2", None])
@pytest.mark.parametrize("name", ["world_size", "accumulate"])
def test_ranks_and_micro_batches_are_whole_numbers_from_one_on(name, number):
    """A world of -2 ranks divides 32 too."""
    with pytest.raises(ValueError, match=f"{name}={number!r} is not allowed: give a whole number"):
        sequences_per_rank(32, **{name: number})


@pytest.mark.parametrize("number", [2.0, True, float("nan"), "2", None])
@pytest.mark.parametrize("name", ["rank", "world_size", "micro_batch", "block", "step"])
def test_numbers_of_a_batch_are_whole(name, number):
    numbers = {"step": 0, name: number}
    with pytest.raises(ValueError, match=f"{name}={number!r} is not allowed: give a whole number"):
        Corpus(limit=2000).batch(numbers.pop("step"), **numbers)


def test_numpys_whole_numbers_are_as_good():
    corpus, two = Corpus(limit=2000), np.int64(2)
    given = corpus.batch(two, rank=np.int32(1), world_size=two, micro_batch=two, block=two)
    usual = corpus.batch(2, rank=1, world_size=2, micro_batch=2, block=2)
    assert all(map(torch.equal, given, usual))
    assert sequences_per_rank(np.int64(32), world_size=two) == 16


@pytest.mark.parametrize("block", [0, -5, 2.5, "8"])
def test_a_block_that_cannot_be_is_not_blamed_on_the_file(block):
    with pytest.raises(ValueError, match=f"block={block!r} is not allowed"):
        check_corpus(__file__, block=block)


@pytest.mark.parametrize("seed", [-1, 1.5, None, "a", True])
def test_a_seed_that_cannot_be(seed):
    with pytest.raises(ValueError, match=f"seed={seed!r} is not allowed: give a whole number of 0"):
        Corpus(limit=2000, seed=seed)


def test_a_file_may_be_shortened_after_it_was_read(tmp_path):
    """As an editor does that writes it anew. Where it was mapped, the process was ended."""
    code = """
import pathlib, sys
from dlcourse.corpus import Corpus
file = pathlib.Path(sys.argv[1])
file.write_bytes(b"hello " * 20_000)
corpus = Corpus(file)
file.write_bytes(b"short")
print(bytes(corpus.batch(1, block=6)[0][0].tolist()))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "my.txt")]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended
    assert sorted(ended.stdout.strip()[2:-1]) == sorted("hello ")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_file_whose_size_the_system_does_not_say():
    assert Corpus("/proc/cpuinfo").batch(0, block=8)[0].shape == (4, 8)


# --- Three kinds of text ------------------------------------------------------------------------


def hangul(tokens) -> float:
    """The share of bytes that belong to Korean letters: three for each."""
    text = bytes(tokens.flatten().tolist()).decode(errors="ignore")
    return 3 * sum("가" <= letter <= "힣" for letter in text) / tokens.numel()


def test_three_kinds_in_equal_parts():
    corpus = KindsCorpus()
    tokens, targets = corpus.batch(7, micro_batch=60)
    kinds = corpus.kinds(micro_batch=60)
    assert kinds.bincount().tolist() == [20, 20, 20]
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    shares = [hangul(tokens[kinds == number]) for number in range(3)]
    assert shares[2] > 0.3 > 0.02 > max(shares[:2])
    code = bytes(tokens[kinds == 0].flatten().tolist())
    english = bytes(tokens[kinds == 1].flatten().tolist())
    assert code.count(b"    ") > 10 * english.count(b"    ")


def test_ranks_get_the_rows_of_one_process_and_know_their_kinds():
    corpus = KindsCorpus(seed=3)
    tokens, _ = corpus.batch(2, micro_batch=8, block=32)
    kinds = corpus.kinds(micro_batch=8)
    parts = [
        corpus.batch(2, rank=rank, world_size=4, micro_batch=2, block=32)[0] for rank in range(4)
    ]
    assert torch.equal(torch.cat(parts), tokens)
    assert torch.equal(torch.cat([corpus.kinds(rank=r, micro_batch=2) for r in range(4)]), kinds)
    assert not torch.equal(tokens, KindsCorpus(seed=4).batch(2, micro_batch=8, block=32)[0])


def test_what_is_held_out_is_in_no_batch():
    corpus = KindsCorpus()
    trained = bytes(corpus.bytes)
    for kind in KINDS:
        tokens, targets = corpus.held_out(kind, sequences=16, block=96)
        assert torch.equal(tokens, corpus.held_out(kind, sequences=16, block=96)[0])
        assert torch.equal(tokens[:, 1:], targets[:, :-1])
        assert corpus.held_out_bytes[kind] * 7 < corpus.train_bytes[kind]
        seen = [bytes(row) in trained for row in tokens.tolist()]
        assert sum(seen) <= 2, "a line may stand twice in a text"
    assert hangul(corpus.held_out("korean")[0]) > 0.3
    assert len(trained) == sum(corpus.train_bytes.values())


def test_the_record_of_architectures_is_of_this_text():
    """A lesson that changes must not change what a recorded loss is compared with."""
    record = json.loads((course_folder() / "data" / "architectures.json").read_text())
    found = KindsCorpus().train_bytes
    for kind in ("english", "korean"):  # code is that of the Python at hand
        assert found[kind] == record["text_bytes"][kind]


@pytest.mark.parametrize(("kind", "lang"), LANGUAGES.items())
def test_the_text_can_be_renewed_from_the_lessons(kind, lang, tmp_path):
    for name in ("notebooks", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "notebooks" / "source").symlink_to(course_folder() / "notebooks" / "source")
    (tmp_path / "notebooks" / lang).symlink_to(course_folder() / "notebooks" / lang)
    text = course_text(tmp_path, lang)
    assert len(text.encode()) > 150_000 and "```" not in text
    assert ("랭크" in text) == (kind == "korean")


def test_what_three_kinds_refuse(monkeypatch):
    with pytest.raises(ValueError, match="only 5000 bytes of code to train on: give a limit of"):
        KindsCorpus(limit=5000)
    corpus = KindsCorpus(limit=50_000)
    for wanted, said in (
        (lambda: corpus.held_out("latin"), "kind='latin' is unknown: give one of code, english"),
        (lambda: corpus.held_out("code", sequences=99), "sequences=99 of 129 bytes are not in"),
        (lambda: corpus.held_out("code", sequences=0), "sequences=0 of 129 bytes"),
        (lambda: corpus.held_out("code", block=9999), "block=9999 does not fit"),
        (lambda: corpus.batch(0, block=49_000), "block=49000 does not fit"),
    ):
        with pytest.raises(ValueError, match=said):
            wanted()
    monkeypatch.setattr(corpus_module, "_course_text", lambda lang: np.zeros(0, dtype=np.uint8))
    with pytest.raises(ValueError, match=r"only 0 bytes of english .* with its notebooks"):
        KindsCorpus()
