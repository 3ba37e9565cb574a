"""The five collectives by MPI's names, and how long they take.

    rows = run_mpi(collective_times, [4, 1 << 20])[0]

The rows are those of `dlcourse.collectives.benchmark`, measured in the same way: everything runs a
few times before the clock counts, the collectives take turns, and a call takes as long as its
slowest rank. Buffers are NumPy arrays: MPI knows neither torch nor GPUs here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from dlcourse.formulas.collective_time import bus_bandwidth

WARM_UP = 2

# Called with (comm, x, y, part). x and y have the whole size; part is a rank's part of it.
CALLS: dict[str, Callable[..., Any]] = {
    "mpi_all_reduce": lambda comm, x, y, part: comm.Allreduce(_in_place(), x),
    "mpi_reduce_scatter": lambda comm, x, y, part: comm.Reduce_scatter_block(x, part),
    "mpi_all_gather": lambda comm, x, y, part: comm.Allgather(part, x),
    "mpi_all_to_all": lambda comm, x, y, part: comm.Alltoall(x, y),
    "mpi_broadcast": lambda comm, x, y, part: comm.Bcast(x, root=0),
}


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE


def collective_times(comm: Any, sizes: Sequence[int], repeats: int = 10) -> list[dict[str, Any]]:
    """Seconds of each collective at each size; called by all ranks, and the same rows in all.

    Args:
        comm: MPI's communicator, which `run_mpi` gives.
        sizes: bytes of the whole float32 array, rounded up so that it divides among the ranks.
        repeats: timed turns of each collective.
    """
    rows = []
    for nbytes in sizes:
        p = comm.size
        x = np.zeros(-(-nbytes // (4 * p)) * p, dtype=np.float32)  # (n,)
        y, part = np.zeros_like(x), np.zeros(x.size // p, dtype=np.float32)  # (n,), (n / p,)
        samples: dict[str, list[float]] = {name: [] for name in CALLS}
        for turn in range(-WARM_UP, repeats):
            for name, call in CALLS.items():
                comm.Barrier()
                start = time.perf_counter()
                call(comm, x, y, part)
                seconds = max(comm.allgather(time.perf_counter() - start))
                if turn >= 0:
                    samples[name].append(seconds)
        rows += [_row(name, x.nbytes, p, times) for name, times in samples.items()]
    return rows


def _row(name: str, nbytes: int, p: int, samples: list[float]) -> dict[str, Any]:
    collective, seconds = name.removeprefix("mpi_"), median(samples)
    return {
        "algorithm": name,
        "collective": collective,
        "ranks": p,
        "bytes": nbytes,
        "seconds": seconds,
        "samples": samples,
        "busbw": bus_bandwidth(collective, nbytes, p, seconds),
    }


def collectives_of(comm: Any, x: np.ndarray) -> dict[str, np.ndarray]:
    """What each collective makes of ``x``, (n,), one in each rank; n divides by the ranks."""
    results = {}
    for name, call in CALLS.items():
        mine, other = x.copy(), np.zeros_like(x)
        part = x.reshape(comm.size, -1)[comm.rank].copy()
        call(comm, mine, other, part)
        kept = {"mpi_reduce_scatter": part, "mpi_all_to_all": other}
        results[name.removeprefix("mpi_")] = kept.get(name, mine)
    return results


def try_dtypes(comm: Any) -> dict[str, str]:
    """Sum (rank + 1) over all ranks in each type, as `dlcourse.collectives.trials` does."""
    from mpi4py import MPI

    total = comm.size * (comm.size + 1) // 2
    found = {}
    for name in ("float64", "float32", "float16", "int64", "int16", "complex64", "bool"):
        x = np.full(4, comm.rank + 1).astype(name)
        try:
            comm.Allreduce(MPI.IN_PLACE, x)
            found[name] = "right" if (x == total).all() else "wrong"
        except MPI.Exception as error:
            found[name] = str(error).strip().splitlines()[-1].rpartition(": ")[2]
    # NumPy has no bfloat16, nor has MPI 5.0. mpi4py has a name, empty where it knows no library's
    known = getattr(MPI, "BFLOAT16_T", MPI.DATATYPE_NULL) != MPI.DATATYPE_NULL
    found["bfloat16"] = "not tried" if known else "MPI_BFLOAT16_T is MPI_DATATYPE_NULL"
    found["float8_e4m3fn"] = "MPI has no such type"
    return found


def there_and_back(comm: Any, counts: Sequence[Sequence[int]], width: int) -> Callable[[], None]:
    """A call that sends this rank's rows to the others and gets them back; tried once.

    Args:
        counts: rows from each rank to each, of ``width`` float32 numbers.
    """
    from mpi4py import MPI

    sent = [width * n for n in counts[comm.rank]]
    came = [width * row[comm.rank] for row in counts]
    x = np.random.default_rng(comm.rank).random(sum(sent), dtype=np.float32)
    there, back = np.empty(sum(came), np.float32), np.empty_like(x)

    def call() -> None:
        comm.Alltoallv([x, sent, MPI.FLOAT], [there, came, MPI.FLOAT])
        comm.Alltoallv([there, came, MPI.FLOAT], [back, sent, MPI.FLOAT])

    call()
    assert (back == x).all()
    return call


def trip_seconds(comm: Any, sizes: Sequence[int], width: int, rounds: int) -> dict[int, float]:
    """The fastest trip there and back at each size; called by all ranks, the same in all.

    Args:
        sizes: bytes that a rank sends on the way there, as many rows to each rank.
        width: float32 numbers in a row.
        rounds: trips at each size.
    """
    fastest = {}
    for size in sizes:
        rows = size // (4 * width * comm.size)
        call, taken = there_and_back(comm, [[rows] * comm.size] * comm.size, width), []
        for _ in range(rounds):
            comm.Barrier()
            start = time.perf_counter()
            call()
            taken.append(max(comm.allgather(time.perf_counter() - start)))
        fastest[size] = min(taken)
    return fastest
