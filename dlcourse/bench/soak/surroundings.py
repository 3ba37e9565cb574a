"""Machines on which something is not as usual: no room, a clock that jumps, no name, no IPv4.

Each is made for the trial's processes alone, by namespaces of Linux; nothing of the machine itself
is changed.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from dlcourse.bench.soak import cells
from dlcourse.bench.soak.trial import NAMED, SUCCESS, UNNAMED, Ending, Trial, named
from dlcourse.course import catalog

WHOLE = 600.0  # seconds that a lesson, or the small cells, may take in all


@cache
def lacks(*spaces: str, programs: tuple[str, ...] = ()) -> str:
    """What this machine lacks for such namespaces, in words."""
    missing = [name for name in ("unshare", *programs) if not shutil.which(name)]
    if missing:
        return f"needs {', '.join(missing)}"
    if subprocess.run([*_unshare(*spaces), "true"], capture_output=True).returncode:
        return f"needs the right to make namespaces (unshare {' '.join(spaces)})"
    return ""


def _unshare(*spaces: str) -> list[str]:
    return ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), *spaces]


def inside(spaces: tuple[str, ...], first: str, command: list[str]) -> list[str]:
    """A command in namespaces of its own, after a line of a shell."""
    return [*_unshare(*spaces), "sh", "-c", f'{first} && exec "$@"', "sh", *command]


def _task(trial: Trial) -> list[str]:
    """The lesson of this trial, each in its turn, or the small cells."""
    if not trial.lessons:
        return cells.command("every_cell(4)")
    written = catalog.written_lessons(catalog.course_root())
    lesson = written[trial.number % len(written)]
    out = str(trial.place / "results")
    run = ["run", lesson, "--lang", "en", "--no-progress", "--out", out]
    return [sys.executable, "-m", "dlcourse.cli", *run]


def _ending(trial: Trial, command: list[str], more: dict[str, str] | None = None) -> Ending:
    """Run a task to its end."""
    started = time.monotonic()
    process = trial.start(command, Path("/"), more)
    trial.until(lambda: process.poll() is not None, WHOLE)
    seconds, said = time.monotonic() - started, trial.said()
    told = cells.heard(said)
    for line in told:
        if "error" in line:
            return _failed(line["error"], line["said"], seconds)
    last = said.strip().rpartition("\n")[2]
    if "results" in " ".join(command):
        lesson = next((line for line in said.splitlines() if "failed:" in line), last)
        if process.returncode == 0:
            return Ending(SUCCESS, last.partition(":")[0], seconds)
        error = lesson.partition("failed: ")[2].partition(":")[0]
        return _failed(error, lesson, seconds)
    if process.returncode or not told or not told[-1].get("ended"):
        return Ending(UNNAMED, f"exit status {process.returncode}: {last}", seconds)
    return Ending(SUCCESS, "all cells", seconds, {k: v for k, v in told[-1].items() if v})


def _failed(error: str, said: str, seconds: float) -> Ending:
    kind = NAMED if named(error, said) else UNNAMED
    return Ending(kind, f"{error}: {said}"[:300], seconds)


# -- a full disk --------------------------------------------------------------------------------

DISK = 4 << 20  # bytes of the temporary folder


IN_TMP = "Python or the course stands in /tmp, which is filled here"


def disk_needs() -> str:
    if any(Path(place).resolve().is_relative_to("/tmp") for place in (sys.prefix, __file__)):
        return IN_TMP
    return lacks("--mount", programs=("mount",))


def full_disk(trial: Trial) -> Ending:
    """The only folder for temporary files has no room, from a random cell on, but for some bytes.

    Python looks for another folder where one is full: here there is none.
    """
    at = trial.chance.randrange(len(cells.CELLS) + 2)
    free = trial.chance.choice((0, 0, 1 << 12, 1 << 14, 1 << 17))
    first = f"mount -t tmpfs -o size={DISK} tmpfs /tmp && mount --bind /tmp /var/tmp && cd /tmp"
    script = cells.command(f"on_a_disk_that_fills(4, {at}, {free})")
    started = time.monotonic()
    process = trial.start(inside(("--mount",), first, script), more={"TMPDIR": "/tmp"})
    trial.until(lambda: process.poll() is not None, trial.limit)
    seconds, told = time.monotonic() - started, cells.heard(trial.said())
    where = f"full before step {at}, {free} bytes free"
    if not told or not told[-1].get("ended"):
        return Ending(UNNAMED, f"{where}: {trial.said()[-200:]}", seconds)
    if not told[-1]["works"]:
        return Ending(UNNAMED, f"{where}; with room again: {told[-1]}", seconds)
    for line in told:
        if "error" in line:
            good = any(words in line["said"] for words in NAMES_THE_DISK)
            words = f"{where}: {line['error']}: {line['said']}"
            return Ending(NAMED if good else UNNAMED, words, seconds)
    return Ending(SUCCESS, where, seconds)


NAMES_THE_DISK = (
    "The disk of temporary files",
    "No space left on device",
    "No usable temporary directory",
)


# -- 64 MB of shared memory, as a container has --------------------------------------------------


def small_shm(trial: Trial) -> Ending:
    """/dev/shm has 64 MB, as in a container, and no more than a part of it is free."""
    taken = trial.chance.choice((0, 0, 32, 60))
    first = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
    if taken:
        first += f" && head -c {taken}M /dev/zero > /dev/shm/taken"
    return _ending(trial, inside(("--mount",), first, _task(trial)))


# -- a machine whose name leads nowhere -----------------------------------------------------------


def name_needs() -> str:
    return lacks("--uts", programs=("hostname",))


def no_name(trial: Trial) -> Ending:
    """The machine's name does not resolve."""
    name = f"no-such-host-{trial.number}.invalid"
    return _ending(trial, inside(("--uts",), f"hostname {name}", _task(trial)))


# -- IPv6 alone -----------------------------------------------------------------------------------


def ipv6_needs() -> str:
    return lacks("--net", programs=("ip",))


def ipv6(trial: Trial) -> Ending:
    """Loopback has ::1 alone, or the network is IPv6 alone, and loopback as usual."""
    alone = trial.number % 2 == 0
    first = "ip link set lo up"
    if alone:
        first += " && ip address delete 127.0.0.1/8 dev lo"
    else:
        first += " && ip link add outside0 type veth peer name outside1 && ip link set outside0 up"
        first += " && ip address add fd00::2/64 dev outside0"
    found = _ending(trial, inside(("--net",), first, cells.command("every_cell(4)")))
    if alone and "This machine has no 127.0.0.1" not in found.said:
        found.kind = SUCCESS if found.kind == SUCCESS else UNNAMED
    found.said = f"{'::1 alone' if alone else 'a network of IPv6 alone'}: {found.said}"
    return found


# -- a clock that jumps ---------------------------------------------------------------------------

# Loaded before the C library: the time of day is moved by as many seconds as a shared file says,
# for Python, torch and ZeroMQ alike. Waits until a time of day are moved back for the kernel.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long *moved;

__attribute__((constructor)) static void begin(void) {
    const char *name = getenv("DLCOURSE_SOAK_CLOCK");
    int file = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(0, 4096, PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) moved = found;
}

static long long now_moved(void) { return moved ? *moved : 0; }

int clock_gettime(clockid_t id, struct timespec *t) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int status = real(id, t);
    if (!status && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += now_moved();
    return status;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    int status = clock_gettime(CLOCK_REALTIME, &exact);
    t->tv_sec = exact.tv_sec, t->tv_usec = exact.tv_nsec / 1000;
    return status;
}

time_t time(time_t *t) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (t) *t = exact.tv_sec;
    return exact.tv_sec;
}

/* A time of day, not one since the machine was started, where the caller may mean either. */
static struct timespec real_time(const struct timespec *t) {
    struct timespec found = *t;
    if (found.tv_sec > 1000000000) found.tv_sec -= now_moved();
    return found;
}

#define WAIT(name, type) \
    int name(type *x, const struct timespec *t) { \
        static int (*real)(type *, const struct timespec *); \
        if (!real) real = dlsym(RTLD_NEXT, #name); \
        struct timespec until = real_time(t); \
        return real(x, &until); \
    }
WAIT(sem_timedwait, sem_t)
WAIT(pthread_mutex_timedlock, pthread_mutex_t)

int pthread_cond_timedwait(pthread_cond_t *c, pthread_mutex_t *m, const struct timespec *t) {
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!real) real = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!real) real = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    struct timespec until = real_time(t);
    return real(c, m, &until);
}
"""


def clock_needs() -> str:
    if sys.platform != "linux":
        return "needs Linux, to load a library before the system's own"
    return "" if shutil.which("cc") else "needs a C compiler (cc)"


def clock_jumps(trial: Trial) -> Ending:
    """The time of day jumps to and fro by up to a day, at random moments."""
    source, library = trial.place / "clock.c", trial.place / "clock.so"
    source.write_text(CLOCK)
    build = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl", "-pthread"]
    subprocess.run(build, check=True, capture_output=True)
    moved = trial.place / "moved"
    moved.write_bytes(bytes(mmap.PAGESIZE))
    over, jumps = threading.Event(), 0

    def jump() -> None:
        nonlocal jumps
        with moved.open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
            while not over.wait(trial.chance.uniform(0, 2)):
                seconds = int(trial.chance.choice((-1, 1)) * 10 ** trial.chance.uniform(0, 4.9))
                page[:8] = struct.pack("q", seconds)
                jumps += 1

    thread = threading.Thread(target=jump, daemon=True)
    thread.start()
    try:
        more = {"LD_PRELOAD": str(library), "DLCOURSE_SOAK_CLOCK": str(moved)}
        found = _ending(trial, _task(trial), more)
    finally:
        over.set()
        thread.join()
    found.said += f", {jumps} jumps"
    return found
