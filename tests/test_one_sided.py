"""One-sided communication does what torch's all-to-all does, bit for bit, or refuses in all ranks.

Nothing here waits for a time to pass: where one rank is slow on purpose, the others are ahead by
themselves, and what would go wrong then is looked for in the data.
"""

from __future__ import annotations

import os
import platform
import re
import signal
import sys
import textwrap
import time
from functools import partial

import cloudpickle
import psutil
import pytest
import torch
import torch.distributed as dist

from dlcourse import RankError, Ranks, RanksInterrupted, bench, machine
from dlcourse.bench import experts
from dlcourse.bench._soak import soak
from dlcourse.collectives import one_sided, shared_memory
from dlcourse.collectives.low_latency import LowLatency, look_words, put_words
from dlcourse.collectives.mailboxes import CHUNK, MOST, SLOTS, chunk_bytes, mailboxes_of
from dlcourse.collectives.places import ready_ways
from dlcourse.collectives.symmetric import SymmetricLowLatency
from dlcourse.figures.expert_parallel import show_race

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="memfd_create of Linux")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # ranks cannot import this file

ROW = 5  # elements


@pytest.fixture(scope="module")
def ranks():
    with Ranks(4, default=False, timeout=20) as pool:
        yield pool


@pytest.fixture
def run(ranks):
    return ranks.run


def bits(shape, dtype, seed):
    """Any bit patterns: not a number, infinities, -0.0 and denormal numbers among them."""
    generator = torch.Generator().manual_seed(seed)
    nbytes = dtype.itemsize
    for n in shape:
        nbytes *= n
    random = torch.randint(0, 256, (nbytes,), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        random %= 2
    return random.view(dtype).view(shape)


def same_bits(a, b):
    a, b = (x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b))
    return torch.equal(a, b)


def counts_of(p, most, seed):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (p, p), generator=generator)
    return (counts * (torch.rand(p, p, generator=generator) < 0.8)).tolist()


# -- equal to torch ---------------------------------------------------------------------------

# Rows at most: nothing at all, little, and several chunks for a rank
ROWS_AT_MOST = [0, 1, 40, 3 * CHUNK // (4 * ROW)]


def differences_to_gloo(group=None):
    """Calls in which an output is not bitwise that of Gloo."""
    found, p, rank = [], dist.get_world_size(group), dist.get_rank(group)
    for seed, (most, dtype) in enumerate(
        [(most, torch.float32) for most in ROWS_AT_MOST]
        + [(9, d) for d in (torch.bfloat16, torch.int64, torch.bool, torch.complex64, torch.uint8)]
    ):
        counts = counts_of(p, most, seed)
        sent, came = counts[rank], [row[rank] for row in counts]
        for shape in ((ROW,), (), (3, 2, 1)):
            x = bits((sum(sent), *shape), dtype, 10 * seed + rank)
            ours, theirs = (x.new_zeros(sum(came), *shape) for _ in range(2))
            assert one_sided.all_to_all(ours, x, came, sent, group) is ours
            dist.all_to_all_single(
                theirs.view(torch.uint8), x.view(torch.uint8), came, sent, group=group
            ) if shape else theirs.copy_(gathered(x, counts, rank, group))
            if not same_bits(ours, theirs):
                found.append((most, dtype, shape))
        if one_sided.exchange_counts(sent, group) != came:
            found.append(("counts", most, dtype))
    x = torch.arange(4.0 * p).view(2 * p, 2) + 100 * rank
    ours, theirs = torch.empty_like(x), torch.empty_like(x)
    one_sided.all_to_all(ours, x, group=group)  # equal parts, sizes left out
    dist.all_to_all_single(theirs, x, group=group)
    return found + ["equal parts"] * (not torch.equal(ours, theirs))


def gathered(x, counts, rank, group):
    """The same by all_gather_object: Gloo does not send every dtype as single elements."""
    everything = [None] * len(counts)
    dist.all_gather_object(everything, x, group=group)
    parts = [
        theirs[sum(row[:rank]) : sum(row[: rank + 1])]
        for theirs, row in zip(everything, counts, strict=True)
    ]
    return torch.cat(parts)


def test_all_to_all_is_bitwise_that_of_gloo(run):
    assert run(differences_to_gloo) == [[]] * 4


def differences_in_groups():
    """In two groups in turn, in one of a single rank, and in one of which a rank is no member."""
    rank, found = dist.get_rank(), []
    pairs = [dist.new_group([0, 3]), dist.new_group([2, 1])]
    three, alone = dist.new_group([3, 1, 0]), [dist.new_group([r]) for r in range(4)]
    for _ in range(2):
        for group in (pairs[rank in (1, 2)], None, alone[rank]):
            found += differences_to_gloo(group)
        if rank != 2:
            found += differences_to_gloo(three)
    return found


def test_groups_do_not_get_into_each_others_way(run):
    assert run(differences_in_groups) == [[]] * 4


def low_latency_problems(ready, group=None):
    """Rows come as they were sent, with any bits, and go back to where they came from."""
    p, rank, found = dist.get_world_size(group), dist.get_rank(group), []
    for dtype, width in ((torch.float32, 6), (torch.bfloat16, 2), (torch.int64, 1)):
        buffer = LowLatency(9, width, dtype, group, ready=ready)
        for call in range(30):
            counts = counts_of(p, 9 * (call % 5 > 0), 100 + call)
            sent, came = counts[rank], [row[rank] for row in counts]
            x = bits((sum(sent), width), dtype, 10 * call + rank)
            if call % 3 == 1:  # what a number or an empty word would look like
                x.view(torch.int32).fill_(call if call % 2 else 0)
            inbox, found_came = buffer.dispatch(x, sent)
            if found_came != came:
                found.append(("counts", dtype, call))
            for source, n in enumerate(came):
                theirs = bits((sum(counts[source]), width), dtype, 10 * call + source)
                if call % 3 == 1:
                    theirs.view(torch.int32).fill_(call if call % 2 else 0)
                start = sum(counts[source][:rank])
                if not same_bits(inbox[source, :n], theirs[start : start + n]):
                    found.append(("dispatch", dtype, call, source))
            back = buffer.combine(inbox.clone() if call % 2 else inbox)
            if not same_bits(back, x):
                found.append(("combine", dtype, call))
    return found


@pytest.mark.parametrize("ready", ["flag", "payload"])
def test_low_latency_rows_arrive_and_return(run, ready):
    assert run(low_latency_problems, ready) == [[]] * 4


def low_latency_in_groups():
    rank = dist.get_rank()
    three, alone = dist.new_group([3, 1, 0]), [dist.new_group([r]) for r in range(4)]
    found = [] if rank == 2 else low_latency_problems("flag", three)
    return found + low_latency_problems("payload", alone[rank])


def test_low_latency_in_groups(run):
    assert run(low_latency_in_groups) == [[]] * 4


# -- memory is used again without a barrier -----------------------------------------------------


def slow_reader(slow_rank):
    """A rank that sees the flag late takes what was meant for that call, not what came after."""
    rank, found = dist.get_rank(), []
    boxes = mailboxes_of(None)
    fence = boxes.fence

    def slow():
        fence()
        time.sleep(0.002)

    if rank == slow_rank:
        boxes.fence = slow
    try:
        for call in range(20):
            n = 40_000 if call % 5 == 0 else 7  # several chunks: the others fill all slots
            x, out = torch.full((4 * n,), float(call * 4 + rank)), torch.empty(4 * n)
            one_sided.all_to_all(out, x)
            want = torch.arange(4.0).repeat_interleave(n) + 4 * call
            if not torch.equal(out, want):
                found.append(call)
    finally:
        boxes.fence = fence
    return found


@pytest.mark.parametrize("slow_rank", [0, 2])
def test_a_slot_is_not_filled_before_it_is_empty(run, slow_rank):
    assert run(slow_reader, slow_rank) == [[]] * 4


def late_with_its_rows(ready):
    """What a call returned is the same until the next one begins, however far the others are."""
    rank, found = dist.get_rank(), []
    buffer = LowLatency(3, 2, ready=ready)
    for call in range(20):
        inbox, _ = buffer.dispatch(torch.full((4, 2), float(call * 4 + rank)), [1] * 4)
        if rank == 1:
            time.sleep(0.002)  # the others combine, and begin the next dispatch where they can
        if not torch.equal(inbox[:, 0, 0], torch.arange(4.0) + 4 * call):
            found.append(call)
        buffer.combine(inbox)
    return found


@pytest.mark.parametrize("ready", ["flag", "payload"])
def test_what_came_stays_until_the_next_call(run, ready):
    assert run(late_with_its_rows, ready) == [[]] * 4


def used_too_late():
    buffer = LowLatency(2, 2)
    weight = torch.ones(2, requires_grad=True)
    inbox, _ = buffer.dispatch(torch.ones(4, 2), [1] * 4)
    loss = (inbox * weight).sum()  # autograd keeps the inbox for the gradient of the weight
    buffer.combine(inbox)
    try:
        loss.backward()
    except RuntimeError as error:
        return str(error)


def test_autograd_refuses_rows_that_others_have_overwritten(run):
    assert all("modified by an inplace operation" in text for text in run(used_too_late))


def trained_after_inference():
    """The buffer is made where no gradients are kept, and used where they are."""
    with torch.inference_mode():
        buffer = LowLatency(2, 2)
        buffer.combine(buffer.dispatch(torch.ones(4, 2), [1] * 4)[0])
    weight = torch.ones(2, requires_grad=True)
    inbox, _ = buffer.dispatch(torch.ones(4, 2), [1] * 4)
    (inbox[:, :1] * weight).sum().backward()
    buffer.combine(inbox)
    return weight.grad.tolist()


def test_a_buffer_made_in_inference_mode_can_be_trained_with(run):
    assert run(trained_after_inference) == [[4.0, 4.0]] * 4


def words_with_a_gap():
    """By payload: whether rows count as come while any one word is still the last call's."""
    alone = [dist.new_group([r]) for r in range(4)][dist.get_rank()]
    buffer = LowLatency(3, 2, group=alone, ready="payload")
    for _ in range(3):
        buffer.combine(buffer.dispatch(torch.ones(3, 2), [3])[0])
    places, x = buffer.places, torch.full((3, 2), float("nan"))
    places.begin("dispatch", (x,), x.nbytes)
    with places:
        places.next_call(x)
        words = places.words_to[0]
        before = words.copy()
        put_words(places, [0], [3])
        after, seen = words.copy(), []
        for k in range(len(words)):
            words[:] = after
            words[k] = before[k]
            seen.append(look_words(places, 0))
        words[:] = after
        return seen, look_words(places, 0)


def test_by_payload_every_word_counts(run):
    assert run(words_with_a_gap) == [([-1] * 7, 3)] * 4


def numbers_run_out():
    """Just before a call's number would no longer fit: a new window, and the numbers begin anew."""
    found, rank = [], dist.get_rank()
    for ready in ("flag", "payload"):
        buffer = LowLatency(1, 1, ready=ready)
        buffer.places._calls = (1 << 31) - 6
        for call in range(6):
            x = torch.full((4, 1), float(call * 4 + rank))
            inbox, _ = buffer.dispatch(x, [1] * 4)
            if not torch.equal(inbox.view(-1), torch.arange(4.0) + 4 * call):
                found.append((ready, call))
            buffer.combine(inbox)
        found.append(buffer.places._calls)
    return found


def test_numbers_of_calls_do_not_run_out(run):
    assert run(numbers_run_out) == [[8, 8]] * 4


def test_random_dispatches_with_ranks_stopped_at_random(ranks):
    """A thousandth of what `dlcourse bench experts --soak 1000000` does."""
    assert soak(ranks, 1000, say=lambda text: None) == 0


# -- refused in all ranks ------------------------------------------------------------------------


def all_to_all_of(case):
    rank = dist.get_rank()
    x, out, sizes = torch.ones(8, 2), torch.empty(8, 2), [[2] * 4, [2] * 4]
    if case == "not contiguous":
        x = torch.ones(2, 8).t()
    elif case == "one rank not contiguous" and rank == 1:
        out = torch.empty(2, 8).t()
    elif case == "sum":
        sizes[1] = [2, 2, 2, 1]
    elif case == "negative":
        sizes[0] = [4, -2, 4, 2]
    elif case == "too few":
        sizes[0] = [4, 4]
    elif case == "fractions":
        sizes[1] = [2.0] * 4
    elif case == "two types":
        out = out.double()
    elif case == "shared":
        out = x[:]
    elif case == "meta":
        x = x.to("meta")
    elif case == "sparse":
        x = x.to_sparse()
    elif case == "conjugate":
        x, out = torch.ones(8, 2, dtype=torch.complex64).conj(), out.to(torch.complex64)
    elif case == "subclass":
        x = x.as_subclass(type("Mine", (torch.Tensor,), {}))
    elif case == "own part":
        sizes = [[2] * 4, [2, 2, 2, 2]]
        sizes[1][rank], sizes[1][rank - 1] = 3, 1
    elif case == "no rows":
        x, out = torch.ones(()), torch.ones(())
    elif case == "counts":
        one_sided.exchange_counts([2] * 8)  # 8 numbers could be sent, 2 to each
    elif case == "counts used up":
        counts = (2 for _ in range(4))
        one_sided.exchange_counts(counts)
        one_sided.exchange_counts(counts)
    elif case == "counts below 0":
        one_sided.exchange_counts([4, -1, 2, 3])
    elif case == "rows differ" and rank == 0:  # 0 sends 3 rows to 1, which expects 2
        sizes[1] = [2, 3, 1, 2]
    elif case == "dtypes differ" and rank == 2:
        x, out = x.int(), out.int()
    one_sided.all_to_all(out, x, *sizes)


REFUSED = {
    "not contiguous": "raised ValueError: input is not contiguous",
    "one rank not contiguous": "rank 1 raised ValueError: output is not contiguous",
    "sum": r"raised ValueError: input_split_sizes is \[2, 2, 2, 1\]: it needs 4",
    "negative": r"raised ValueError: output_split_sizes is \[4, -2, 4, 2\]",
    "too few": r"raised ValueError: output_split_sizes is \[4, 4\]: it needs 4",
    "fractions": r"raised ValueError: input_split_sizes is \[2.0",
    "two types": "raised ValueError: output is torch.float64 and input torch.float32",
    "shared": "raised ValueError: output and input share memory",
    "meta": "raised ValueError: input is torch.strided on meta",
    "sparse": "raised ValueError: input is torch.sparse_coo on cpu",
    "conjugate": "raised ValueError: input is a view that only notes",
    "subclass": "raised ValueError: input is a Mine: give a plain",
    "own part": r"raised ValueError: this rank sends itself 6 numbers \(3 rows of input\) and",
    "no rows": r"raised ValueError: input has no dimension of rows to share out: give input\[None",
    "counts": r"raised ValueError: input_split_sizes is \[2, 2, 2, 2, 2, 2, 2, 2\]: give 4 whole",
    "counts used up": r"raised ValueError: input_split_sizes is \[\]: give 4 whole numbers",
    "counts below 0": r"raised ValueError: input_split_sizes is \[4, -1, 2, 3\]: give 4 whole",
    "rows differ": "rank 1 raised ValueError: output_split_sizes makes this rank expect 16 bytes "
    "of torch.float32 from rank 0, which sends 24 of torch.float32",
    "dtypes differ": "expect 16 bytes of torch.float32 from rank 2, which sends 16 of torch.int32",
}


def test_where_the_processor_is_another_there_is_no_payload(monkeypatch):
    """Lesson 08 takes the ways that are there, and its picture has as many lines."""
    ours = set(ready_ways())
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert ready_ways() == ("flag",) and ours >= {"flag"}
    times = {name: 1e-3 for name in ("gloo", "one_sided", "flag")}
    picture = show_race({size: times for size in (128 * 256 * 4, 4096 * 256 * 4)})
    assert len({trace.name for trace in picture.data}) == 3


def low_latency_of(case):
    rank, x, counts, buffer = dist.get_rank(), torch.ones(8, 2), [2] * 4, None
    if case == "capacity 0":
        buffer = LowLatency(0, 2)
    elif case == "ready":
        buffer = LowLatency(2, 2, ready="barrier")
    elif case == "another machine":
        machine, platform.machine = platform.machine, lambda: "aarch64"
        try:
            buffer = LowLatency(2, 2, ready="payload")
        finally:
            platform.machine = machine
    elif case == "odd payload":
        buffer = LowLatency(2, 3, torch.bfloat16, ready="payload")
    elif case == "arguments differ":
        buffer = LowLatency(2 + (rank == 3), 2)
    buffer = buffer or LowLatency(3, 2)
    if case == "over capacity":
        counts = [2, 2, 4, 0] if rank == 0 else counts
    elif case == "counts":
        counts = [2, 2, 2]
    elif case == "width":
        x = torch.ones(8, 3)
    elif case == "combine alone":
        buffer.combine(torch.ones(4, 3, 2))
    inbox, _ = buffer.dispatch(x, counts)
    if case == "twice" and rank == 1:  # while the others combine
        buffer.dispatch(x, counts)
    elif case == "another call's memory":
        buffer.combine(inbox)
        buffer.dispatch(inbox.view(-1, 2)[:8], counts)
    buffer.combine(inbox[:, :, :1] if case == "combine's shape" else inbox)


LOW_LATENCY_REFUSED = {
    "capacity 0": "raised ValueError: capacity=0: give a whole number of at least 1",
    "ready": "raised ValueError: ready='barrier': choose 'flag' or 'payload'",
    "another machine": "raised ValueError: ready='payload' on aarch64",
    "odd payload": "raised ValueError: width=3 of torch.bfloat16 is 6 bytes",
    "arguments differ": "raised ValueError: capacity, width, dtype or ready differs",
    "over capacity": r"rank 0 raised ValueError: counts is \[2, 2, 4, 0\] and capacity=3",
    "counts": r"raised ValueError: counts is \[2, 2, 2\]: it needs 4 whole numbers",
    "width": r"raised ValueError: x_MC is torch.float32 of shape \(8, 3\)",
    "combine alone": "raised ValueError: combine without a dispatch",
    "twice": "raised ValueError: .* meets another call in another rank",
    "another call's memory": "raised ValueError: x_MC lies where other ranks write",
    "combine's shape": "raised ValueError: y_PKC is ",
}


def call_of(kind, case):
    (all_to_all_of if kind == "all_to_all" else low_latency_of)(case)


@pytest.mark.parametrize(
    ("kind", "case", "text"),
    [("all_to_all", case, text) for case, text in REFUSED.items()]
    + [("low latency", case, text) for case, text in LOW_LATENCY_REFUSED.items()],
)
def test_refused_in_words_and_no_rank_is_left_waiting(run, kind, case, text):
    call = partial(call_of, kind, case)
    with pytest.raises(RankError, match=text) as caught:
        run(call)
    # All came to an end by themselves; where one gets what it does not expect, others may be done
    failures = caught.value.failures
    assert not any(failure["interrupted"] or failure["cut"] for failure in failures.values())
    assert len(failures) == 4 or case in ("rows differ", "dtypes differ", "twice")
    assert run(partial(call_of, "all_to_all", None)) == [None] * 4


# -- ranks that do not come, or end ----------------------------------------------------------------

USE = """
    from dlcourse.collectives.one_sided import all_to_all
    from dlcourse.collectives.mailboxes import mailboxes_of
    x, out = torch.ones(8), torch.empty(8)
    all_to_all(out, x)
"""


def cell(pool, source):
    return pool.cell(textwrap.dedent(source), record=False)


def test_a_rank_that_never_comes_is_named(ranks):
    cell(ranks, USE)
    with pytest.raises(RankError) as caught:
        cell(ranks, "if rank != 2:\n    all_to_all(out, x)")
    text = str(caught.value)
    assert re.match(r"rank 2 never reached all_to_all #\d+; ranks 0-1, 3 wait in it", text)
    at = r"waiting in all_to_all #\d+ \(float32 \[8\], 32 bytes\), line 2: all_to_all\(out, x\)"
    assert re.search(at, text)
    cell(ranks, USE)


@pytest.mark.parametrize("calls", [0, 1])
def test_ranks_that_made_one_call_more_are_told_so(ranks, calls):
    """By low latency two ranks may end a call that the third is yet to make: not this time."""
    cell(ranks, USE)
    with pytest.raises(RankError, match="out of step: of the collectives of one group"):
        cell(
            ranks,
            f"""
            from dlcourse.measure import own_calls
            group = dist.new_group(range(4))
            mailboxes_of(group)
            for _ in range({calls}):
                all_to_all(out, x, group=group)
            if rank == 1:  # stands for a call that the others did not make
                own_calls.end(own_calls.begin("all_to_all", group.group_name, (x,), 0))
            """,
        )
    cell(ranks, USE)


def test_stop_ends_the_wait(ranks):
    cell(ranks, USE)
    with pytest.raises(RanksInterrupted, match=r"rank 1 .* computing, line [56]"):
        cell(
            ranks,
            f"""
            import os, time
            if rank == 1:
                time.sleep(0.3)
                os.kill({os.getpid()}, {signal.SIGINT:d})
                while True:
                    pass
            all_to_all(out, x)
            """.lstrip("\n"),
        )
    cell(ranks, USE)


def test_a_rank_that_comes_too_late_is_named(ranks):
    cell(ranks, USE)
    with pytest.raises(RankError) as caught:
        cell(
            ranks,
            """
            import time
            boxes = mailboxes_of(None)
            assert boxes._timeout_s == 20  # the group's
            boxes._timeout_s = 1.0 if rank == 0 else 60.0  # the others lose rank 0, then
            if rank == 1:
                time.sleep(60)
            all_to_all(out, x)
            """,
        )
    text = str(caught.value)
    assert text.startswith("rank 0 gave up after")
    assert re.search("rank 0 in all_to_all #\\d+: Timed out after 1 s: rank 1 did not come", text)
    assert re.search("rank 0 .* line 8: all_to_all", text)
    cell(ranks, USE)


KILL = """
    import os
    boxes = mailboxes_of(None)
    if rank == 1:
        boxes.tell_put = lambda to: os.kill(os.getpid(), 9)  # the data is there, the flag is not
    all_to_all(out, x)
"""


def test_a_rank_killed_between_data_and_flag_is_named_and_nothing_is_left():
    before = {*os.listdir("/dev/shm")}
    with Ranks(4, default=False) as pool:
        cell(pool, USE)
        processes = [psutil.Process(pid) for pid in pool.run(os.getpid)]
        start = time.monotonic()
        with pytest.raises(RankError, match=r"^rank 1 was killed by SIGKILL") as caught:
            cell(pool, KILL)
        limit = min(20, 5 * machine.crowding())  # by the death, not by the time-out of 30 s
        assert time.monotonic() - start < limit
        assert "line 6: all_to_all(out, x)" in str(caught.value)
        psutil.wait_procs(processes, timeout=60)
        assert not any(p.is_running() for p in processes)  # with them their nameless memory
        left = {*os.listdir("/dev/shm")} - before  # other tests run beside this one
        ours = {str(process.pid) for process in processes}
        assert not [name for name in left if ours & {*re.findall(r"\d+", name)}]
        cell(pool, USE)


def killed_without_an_engine():
    """The ranks notice by themselves, as they would under torchrun."""
    pid = os.fork()
    assert pid >= 0
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    boxes = mailboxes_of(None)
    watched = boxes._processes
    dead = (dist.get_rank() + 1) % 4  # a process that stands for this rank's neighbour
    descriptor = os.pidfd_open(pid)
    watched._ranks[descriptor] = dead
    watched._poll.register(descriptor)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    boxes.begin("all_to_all", (torch.ones(1),), 4)
    with boxes:
        while True:
            boxes.pause([dead])


def test_ranks_notice_that_another_has_ended(run):
    with pytest.raises(RankError, match=r"in all_to_all #\d+: Connection lost: rank \d ended"):
        run(killed_without_an_engine)
    run(partial(call_of, "all_to_all", None))


# -- memory ------------------------------------------------------------------------------------


def too_little(how):
    import resource

    group, rank = dist.new_group(range(4)), dist.get_rank()  # it has no memory yet
    limit, free = resource.getrlimit(resource.RLIMIT_FSIZE), shared_memory.available_bytes
    if how == "memory":
        shared_memory.available_bytes = lambda: 1 << 20
    elif rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
    try:
        one_sided.all_to_all(torch.empty(4), torch.ones(4), group=group)
    finally:
        shared_memory.available_bytes = free
        if how != "memory" and rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize(
    ("how", "why"), [("memory", "Cannot allocate"), ("file", "File too large")]
)
def test_too_little_memory_is_said_before_anything_is_written(run, how, why):
    text = rf"raised ValueError: 4,\d+,\d+ bytes of shared memory .* 4 ranks, and {why}"
    with pytest.raises(RankError, match=text):
        run(too_little, how)


def over_nccl():
    """As in a group that has no backend for the CPU."""
    group, asked = dist.new_group(range(4)), dist.get_backend_config
    dist.get_backend_config = lambda group=None: "cuda:nccl"
    try:
        one_sided.all_to_all(torch.empty(4), torch.ones(4), group=group)
    finally:
        dist.get_backend_config = asked


def test_a_group_without_the_cpu_is_refused(run):
    with pytest.raises(RankError, match="raised ValueError: the group talks over"):
        run(over_nccl)


def test_all_memory_is_reserved_at_the_start():
    """Else a lack of it would show at some later store, which ends the process."""
    descriptor, token, error = shared_memory._make(1 << 20, free=1 << 30)
    try:
        assert (error, os.pread(descriptor, 100, 0)[:16]) == (0, token)
        assert os.fstat(descriptor).st_blocks * 512 >= 1 << 20
    finally:
        os.close(descriptor)


def test_the_size_of_dev_shm_plays_no_part(run):
    """The memory is no file there, so a small /dev/shm cannot be too small for it."""
    assert run(mapped) == [True] * 4


@pytest.mark.parametrize("p", [1, 2, 4, 16, 17, 20, 33, 100, 1000])
def test_among_many_ranks_slots_are_smaller(p):
    chunk = chunk_bytes(p)
    assert chunk % 64 == 0  # the words of a header are written as a whole only if they are aligned
    assert SLOTS * p * p * chunk <= MOST or chunk == 4096


def mapped():
    mailboxes_of(None)
    with open("/proc/self/maps") as maps:
        lines = [line for line in maps if "memfd:dlcourse" in line]
    return bool(lines) and not any("/dev/shm" in line for line in lines)


# -- what is seen of it ----------------------------------------------------------------------------


def test_the_recorder_sees_calls_and_bytes(ranks):
    ranks.run(mailboxes_of_world)
    ranks.run(recorded, record=True)
    (row,) = ranks.last.comm.data()["ops"]
    # all-to-all of 8 x 4 bytes, of which 2 x 4 stay; dispatch and combine of 4 x 8, 1 x 8 stays
    assert (row["op"], row["calls"], row["bytes"], row["wire_bytes"]) == (
        *("all_to_all", 3.0),
        *(32 + 32 + 32, 24 + 24 + 24),
    )
    assert 0 < row["time_s"] < 60


def mailboxes_of_world():
    mailboxes_of(None)
    dist.low = LowLatency(2, 2)  # made here: to make it, the ranks call torch's collectives


def recorded():
    one_sided.all_to_all(torch.empty(8), torch.ones(8))
    inbox, _ = dist.low.dispatch(torch.ones(4, 2), [1] * 4)
    dist.low.combine(inbox)
    del dist.low


def test_the_bench_compares_in_turns(ranks, monkeypatch, capsys):
    monkeypatch.setattr(experts.mpi, "missing", lambda *_: "not for this test")
    samples = experts.measure(ranks, 4, 2, layer=False)
    assert all(len(times) == 2 for times in samples.values())
    assert {kind for _, kind in samples} >= {"Gloo", "one-sided", "low latency"}
    limits = (1e9, 0.0)
    targets = [("4 MB", ("one-sided", "low latency"), "Gloo", limit) for limit in limits]
    monkeypatch.setattr(experts, "TARGETS", targets)
    assert experts.judge(samples) == 1
    assert "of Gloo, target at most 0.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [(["--turns", "1"], "at least 2 ranks and 2 turns"), (["--soak", "0"], "--soak 0: give")],
)
def test_options_of_one_bench(capsys, options, text):
    with pytest.raises(SystemExit):
        bench.main(["experts", *options])
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is symmetric memory")
def test_symmetric_memory_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="no CUDA device, and torch has no symmetric memory of"):
        SymmetricLowLatency(4, 8)
