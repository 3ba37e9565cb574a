"""Parameters into shards and back."""

from dlcourse.course.exercises import expect, expect_close, expect_sent, gathered, measured

NAMES = ("cut", "join")
CASES = ("even", "uneven", "tiny", "joined", "bytes", "memory")
NUM_RANKS = 3


def check(cut, join, rank, world_size):
    import torch

    findings = []
    for case, shapes in (
        ("even", [(4, 3), (12,)]),
        ("uneven", [(5, 3), (4,), (2, 2)]),
        ("tiny", [(2,)]),
    ):
        tensors, start = [], 1.0
        for shape in shapes:  # whole numbers from 1 on, so that padding is seen
            count = torch.Size(shape).numel()
            tensors.append(torch.arange(start, start + count).view(shape))
            start += count
        total = int(start) - 1
        shard = cut([tensor.clone() for tensor in tensors])
        n = -(-total // world_size)
        usable = isinstance(shard, torch.Tensor) and shard.layout == torch.strided
        usable = usable and shard.device.type == "cpu"
        lengths = gathered(shard.numel() if usable else -1)
        findings.append(
            expect(case, lengths == [n] * world_size, "lengths", got=str(lengths), want=n)
        )
        if lengths != [n] * world_size:
            continue
        row = torch.nn.functional.pad(torch.cat([t.flatten() for t in tensors]), (0, n))
        findings.append(expect_close(case, shard.flatten(), row[rank * n : (rank + 1) * n].clone()))
        with measured() as seen:
            joined = join(shard, list(shapes))
        good = isinstance(joined, list | tuple) and len(joined) == len(tensors)
        findings.append(expect("joined", good, "not_tensors", want=len(tensors)))
        if good:
            findings += [expect_close("joined", a, b) for a, b in zip(joined, tensors, strict=True)]
        if case == "uneven":
            least = (world_size - 1) * n * 4
            findings.append(expect_sent("bytes", seen, minimum=least, at_least=0.95))
            own = shard.untyped_storage().nbytes()
            findings.append(expect("memory", own <= 4 * n, "whole_kept", got=own, want=4 * n))
    told = set()
    return [f for f in findings if f["ok"] or not (f["case"] in told or told.add(f["case"]))]
