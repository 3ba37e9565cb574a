"""Small cells that use what the lessons use, for trials that run no whole lesson."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

GPT = "GPT(GPTConfig(block_size=16, n_layer=4, n_head=4, n_embd=32))"
CELLS = (
    "x = torch.arange(1000.) * rank\ndist.all_reduce(x)\nassert x[1] == sum(range(world_size))",
    """
from dlcourse.collectives.ring import ring_all_reduce
y = torch.ones(10_000) * (rank + 1)
ring_all_reduce(y)
assert (y == sum(range(world_size + 1))).all()
""",
    f"""
from dlcourse.corpus import Corpus
from dlcourse.models.gpt import GPT, GPTConfig
from dlcourse.parallel.data import OverlappedDataParallel
batch = Corpus(limit=99_999).batch(0, rank=rank, world_size=world_size, micro_batch=2, block=16)
model = OverlappedDataParallel({GPT})
model(*batch).backward()
""",
    f"""
from dlcourse.parallel.tensor import tensor_parallel
together = Corpus(limit=99_999).batch(0, micro_batch=2 * world_size, block=16)
tensor_parallel({GPT})(*together).backward()
""",
    f"""
from dlcourse.parallel.pipeline import PipelineParallel
from dlcourse.parallel.pipeline_schedules import one_f_one_b
PipelineParallel({GPT}, one_f_one_b(world_size, 2 * world_size)).step(*together)
""",
    f"""
from dlcourse.parallel.zero3 import ZeRO3
model = ZeRO3({GPT})
optimizer = torch.optim.AdamW(model.shards)
model(*batch).backward()
model.sync_gradients()
optimizer.step()
model.sync_parameters()
""",
    """
from dlcourse.collectives.one_sided import all_to_all
got = torch.empty(world_size, 8)
all_to_all(got, torch.full((world_size, 8), float(rank)), [1] * world_size, [1] * world_size)
assert got[:, 0].tolist() == list(range(world_size))
""",
    "import time\ntime.sleep(0.3 * rank)\ndist.barrier()",
    "for _ in range(300):\n    dist.all_reduce(torch.ones(10_000))",
)
MAKE = "from dlcourse import Ranks\nranks = Ranks({size})"
# Whatever happened before: the next cell works, in the ranks that are there or in new ones.
CHECK = """
from dlcourse.ranks import Ranks as _Ranks
from dlcourse.ranks.notebook import pool as _pool
_ranks = _pool._default
if _ranks is None or _ranks.state == "stopped":
    _ranks = _Ranks(2)
_ranks.run(lambda: __import__("torch.distributed").distributed.barrier())
_works = _ranks.run(lambda: 7)
assert _works == [7] * len(_ranks), _works
"""


def notebook_cells(size: int) -> list[str]:
    """The small cells as a notebook has them."""
    return [MAKE.format(size=size), *(f"%%ranks\n{cell.strip()}" for cell in CELLS)]


# -- scripts: what `python -c` calls, each in a process of its own ------------------------------


def say(**found: Any) -> None:
    """A line for the trial."""
    print("soak:", json.dumps(found), flush=True)


def heard(text: str) -> list[dict[str, Any]]:
    """What a script has told by `say`."""
    lines = (line.partition("soak: ")[2] for line in text.splitlines() if "soak: " in line)
    return [json.loads(line) for line in lines]


def command(call: str) -> list[str]:
    """A command that calls a function of this module."""
    return [sys.executable, "-c", f"from dlcourse.bench.soak import cells; cells.{call}"]


def every_cell(size: int, rounds: int = 1) -> None:
    """Run the small cells, and once more after a restart; tells the first error."""
    from dlcourse import Ranks

    started, clock = time.monotonic(), time.time()
    try:
        with Ranks(size) as ranks:
            for _ in range(rounds):
                for source in CELLS:
                    ranks.cell(source)
                ranks.restart()
    except Exception as error:
        say(error=type(error).__name__, said=str(error))
    jumped = time.time() - clock - (time.monotonic() - started)
    say(ended=True, jumped=round(jumped, 1))


def on_a_disk_that_fills(size: int, at: int, free: int) -> None:
    """Before cell number ``at`` (0: before the pool) the disk fills, but for some bytes.

    Afterwards there is room again, and the next cell must work.
    """
    import tempfile

    from dlcourse import Ranks

    filler = Path(tempfile.gettempdir()) / "filler"
    errors: list[tuple[str, str]] = []
    ranks = None
    for number, source in enumerate(("", *CELLS, "restart")):
        if number == at:
            _fill(filler, free)
        try:
            if not number or ranks is None:
                ranks = ranks or Ranks(size)
            elif source == "restart":
                ranks.restart()
            else:
                ranks.cell(source)
        except Exception as error:
            errors.append((type(error).__name__, str(error)))
            break
    filler.unlink(missing_ok=True)
    for name, said in errors:
        say(error=name, said=said)
    try:
        if ranks is None or ranks.state == "stopped":
            ranks = Ranks(size)
        works = ranks.run(lambda: 7) == [7] * size
        ranks.stop()
        say(ended=True, works=works)
    except Exception as error:
        say(ended=True, works=False, error=type(error).__name__, said=str(error))


def _fill(file: Path, free: int) -> None:
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(1 << 12))
        except OSError:
            pass
        out.truncate(max(0, out.tell() - free))


def many_pools(count: int, seed: int) -> None:
    """So many pools in this one process; tells what it and its agent hold on the way."""
    from dlcourse import Ranks

    chance = random.Random(seed)
    every = max(1, count // 50)
    for number in range(count):
        size = chance.choice((2, 3, 4))
        ranks = Ranks(size)
        ranks.cell("x = torch.ones(1000)\ndist.all_reduce(x)")
        if ranks["x"][0][0] != size:
            raise ValueError(f"pool {number}: {ranks['x']}, where {size} is the sum")
        how = chance.random()
        if how < 0.1:  # a pool that fails, and one whose rank is killed
            try:
                ranks.cell("import os\nif rank == 1: os.kill(os.getpid(), 9)\ndist.barrier()")
            except RuntimeError:
                ranks.cell("1")
        if number % every == 0 or number == count - 1:
            say(pools=number + 1, **held(ranks.agent.process.pid))
    ranks.__exit__()
    say(ended=True)


def held(agent: int | None = None) -> dict[str, Any]:
    """What this process and its agent, should it have one, hold now."""
    import gc
    import tempfile

    import psutil

    gc.collect()
    found: dict[str, Any] = {}
    for name, pid in (("kernel", os.getpid()), ("agent", agent)):
        if pid is None:
            continue
        process = psutil.Process(pid)
        found[f"{name}_descriptors"] = process.num_fds()
        found[f"{name}_threads"] = process.num_threads()
        found[f"{name}_memory_mb"] = round(process.memory_info().rss / 1e6, 2)
    found["processes"] = len(psutil.Process().children(recursive=True))
    found["files"] = len(list(Path(tempfile.gettempdir()).rglob("*")))
    return found


def slow_cells(count: int, seed: int) -> None:
    """Cells whose ranks are only slow, some of them far behind the others; tells refusals."""
    from dlcourse import Ranks

    chance, refused = random.Random(seed), 0
    with Ranks(4, timeout=300) as ranks:
        for _ in range(count):
            try:
                ranks.cell(_slow(chance), record=chance.random() < 0.5)
            except Exception as error:
                refused += 1
                say(error=type(error).__name__, said=str(error))
    say(ended=True, cells=count, refused=refused)


def _slow(chance: random.Random) -> str:
    late, seconds = chance.randrange(4), chance.uniform(0, 2.5)
    work = chance.choice(
        (
            f"import time; time.sleep({seconds:.2f})",
            f"import time; end = time.monotonic() + {seconds:.2f}\nwhile time.monotonic() < end: 1",
            f"for _ in range({int(seconds * 8)}): torch.randn(300, 300) @ torch.randn(300, 300)",
        )
    )
    work = "\n".join(f"    {line}" for line in work.splitlines())
    meet = chance.choice(
        (
            "dist.barrier()",
            "x = torch.ones(100_000); dist.all_reduce(x)",
            "x = torch.ones(10)\n"
            "if rank: dist.recv(x, rank - 1)\n"
            "if rank < world_size - 1: dist.send(x, rank + 1)",
            "from dlcourse.collectives.ring import ring_all_reduce\n"
            "x = torch.ones(1000); ring_all_reduce(x)",
            "w = dist.all_reduce(torch.ones(9), async_op=True)\nw.wait()\ndist.barrier()",
        )
    )
    return f"if rank == {late}:\n{work}\n{meet}"


def malformed_frames(count: int, seed: int) -> None:
    """So many connections of strangers to the port that other machines' agents speak to.

    Tells what this process holds on the way, and whether one who has the keys is heard at the end.
    """
    import tempfile

    from dlcourse.ranks.messaging import MessageClient, MessageServer

    heard_there: list[str] = []
    server = MessageServer(lambda who, message: heard_there.append(message["kind"]))
    try:
        channel = server.bind_network("127.0.0.1")
        chance, every = random.Random(seed), max(1, count // 50)
        for number in range(count):
            _disturb(channel.address, chance)
            if number % every == 0 or number == count - 1:
                say(connections=number + 1, **held())
        with tempfile.TemporaryDirectory() as folder:
            channel.save(Path(folder) / "keys" / "channel.json")
            MessageClient(f"{folder}/keys/channel.json", b"1:0").send("hello")
            limit = time.monotonic() + 60
            while not heard_there and time.monotonic() < limit:
                time.sleep(0.01)
        say(ended=True, heard=heard_there)
    finally:
        server.close()


def _disturb(address: str, chance: random.Random) -> None:
    """One connection that sends noise: at once, after ZeroMQ's greeting, or as frames after it."""
    import socket

    host, _, port = address.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
    noise = chance.randbytes(chance.randrange(1, 300))
    begun = chance.choice(
        (
            b"",
            greeting,
            greeting + bytes((chance.choice((0, 1, 4)), len(noise) % 256)),  # a frame of its length
            greeting + b"\x04\xc8" + b"\x05HELLO" + bytes((1, 0)),  # a command's 200 bytes
            greeting + b"\x02" + bytes(4) + chance.randbytes(4),  # says it is long
        )
    )
    try:
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(begun + noise)
    except ConnectionError:  # it was shown the door meanwhile
        pass


def over_two_machines(place: str, seed: int) -> None:
    """Cells on two machines until one is lost; tells what the cell and the next one say."""
    from dlcourse import Ranks

    chance = random.Random(seed)
    try:
        ranks = Ranks(4)
        (Path(place) / "up").touch()
        while True:
            ranks.cell(_slow(chance))
    except Exception as error:
        say(error=type(error).__name__, said=str(error))
    try:
        ranks.cell("1")
        say(ended=True, next="works")
    except Exception as error:
        say(ended=True, next=f"{type(error).__name__}: {error}")
