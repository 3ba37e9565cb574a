"""Parameters into buckets, in the order in which backward ends."""

from dlcourse.course.exercises import as_list, describe, expect

NAMES = ("assign",)
CASES = ("once", "order", "cap", "calls")
NUM_RANKS = 1


def check(assign, rank, world_size):
    from dlcourse.models.gpt import GPT, GPTConfig

    gpt = [p.nbytes for p in GPT(GPTConfig(n_layer=2, n_embd=64)).parameters()]
    jobs = [
        ([10, 20, 30, 40, 50], 60),
        ([30, 30, 30, 30], 60),
        ([5, 500, 5, 5], 100),  # one parameter is larger than a bucket
        ([5, 5, 500], 100),
        ([7], 100),
        (gpt, 64 * 1024),
    ]
    findings = [finding for sizes, cap in jobs for finding in _judge_buckets(assign, sizes, cap)]
    told, kept = set(), []
    for finding in findings:  # of each case the first and smallest example of what is wrong
        if finding["ok"] or finding["case"] not in told:
            kept.append(finding)
            told |= set() if finding["ok"] else {finding["case"]}
    return kept


def _judge_buckets(assign, sizes, cap):
    got = assign(list(sizes), cap)
    buckets = [as_list(bucket) for bucket in as_list(got) or [None]]
    flat = [position for bucket in buckets for position in bucket or []]
    if None in buckets or not all(type(p) is int and 0 <= p < len(sizes) for p in flat):
        values = {"got": describe(got), "last": len(sizes) - 1}
        return [expect("once", False, "not_positions", **values)]
    shown = _shown(sizes)
    missing = sorted(set(range(len(sizes))) - set(flat))
    twice = sorted({p for p in flat if flat.count(p) > 1})
    if missing or twice:
        key = "missing" if missing else "twice"
        return [expect("once", False, key, which=(missing or twice)[0], sizes=shown, cap=cap)]
    findings = [expect("once", True)]
    turned = next((i for i, p in enumerate(flat) if p != len(sizes) - 1 - i), None)
    if turned is not None:
        bucket = next(i for i, b in enumerate(buckets) if flat[turned] in b)
        ready = 1 + max(len(sizes) - 1 - p for p in buckets[bucket])
        findings.append(
            expect(
                "order", False, "late", bucket=bucket, ready=ready, count=len(sizes), sizes=shown
            )
        )
    else:
        findings.append(expect("order", True))
    for number, bucket in enumerate(buckets):
        total = sum(sizes[p] for p in bucket)
        if total > cap and len(bucket) > 1:
            findings.append(
                expect("cap", False, "over", bucket=number, got=total, cap=cap, sizes=shown)
            )
            break
    else:
        findings.append(expect("cap", True))
    fewest = len(_solved(sizes, cap))
    few = len(buckets) <= fewest and all(buckets)
    values = {"got": len(buckets), "want": fewest, "sizes": shown, "cap": cap}
    findings.append(expect("calls", few, "many", **values))
    return findings


def _solved(sizes, cap):
    buckets, filled = [[]], 0
    for position in reversed(range(len(sizes))):
        if buckets[-1] and filled + sizes[position] > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(position)
        filled += sizes[position]
    return buckets


def _shown(sizes):
    return str(sizes) if len(sizes) <= 8 else f"[{sizes[0]}, {sizes[1]}, …] ({len(sizes)})"
