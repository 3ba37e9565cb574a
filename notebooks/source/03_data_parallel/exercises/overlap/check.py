"""All-reduces of buckets that run while backward goes on."""

from dlcourse.course.exercises import expect, measured

NAMES = ("Overlap",)
CASES = ("mean", "again", "early", "free", "calls")
NUM_RANKS = 3
TIME_LIMIT = 30.0

PATIENCE = 4  # seconds for which rank 0 holds its backward back


def check(Overlap, rank, world_size):
    import time
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    from dlcourse.models.gpt import GPT, GPTConfig

    config = GPTConfig(block_size=16, n_layer=2, n_head=2, n_embd=32)
    model, reference = GPT(config), GPT(config)
    backwards = [*reversed([*model.parameters()])]
    buckets = [backwards[i : i + 5] for i in range(0, len(backwards), 5)]
    overlap = Overlap(model, buckets)
    store = dist.distributed_c10d._get_default_store()
    sizes = [sum(p.nbytes for p in bucket) for bucket in buckets]
    findings = []
    for step in range(2):
        random = torch.Generator().manual_seed(10 * step + rank)
        tokens, targets = torch.randint(256, (2, 2, 16), generator=random)
        wanted = _mean_gradients(reference, tokens, targets, world_size)
        for parameter in model.parameters():
            parameter.grad = None
        with measured() as seen:
            loss = model(tokens, targets)
            if step == 0 and rank == 0:  # the others must not need this rank to end backward
                others = [f"03.overlap.ended.{r}" for r in range(1, world_size)]
                try:
                    store.wait(others, timedelta(seconds=PATIENCE))
                except RuntimeError:
                    store.set("03.overlap.blocked", "1")
                time.sleep(0.2)
                store.set("03.overlap.begun", "1")
            loss.backward()
            ended = time.monotonic_ns()
            if step == 0 and rank > 0:
                store.set(f"03.overlap.ended.{rank}", "1")
                free = not store.check(["03.overlap.blocked"])
                findings.append(expect("free", free, "blocked", seconds=PATIENCE))
            overlap.finish()
        findings.append(_judge_gradients(step, model, wanted, world_size))
        sent = [e for e in seen.comm if e["op"] == "all_reduce"]
        early = sum(e["bytes"] for e in sent if e["start_ns"] < ended)
        share = round(100 * early / sum(sizes))
        findings.append(expect("early", share >= 60, "too_late", share=share))
        few = len(sent) <= len(buckets)
        findings.append(expect("calls", few, "many", got=len(sent), want=len(buckets)))
    return findings


def _mean_gradients(model, tokens, targets, world_size):
    import torch.distributed as dist

    model.zero_grad()
    model(tokens, targets).backward()
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    return {name: p.grad / world_size for name, p in model.named_parameters()}


def _judge_gradients(step, model, wanted, world_size):
    case = "again" if step else "mean"
    for name, parameter in model.named_parameters():
        want, got = wanted[name], parameter.grad
        if got is None:
            return expect(case, False, "no_gradient", name=name)
        # float32 sums over the ranks, in any order
        off, allowed = (got - want).abs().max().item(), 1e-5 * want.abs().max().item() + 1e-9
        if not off <= allowed:  # a NaN is neither
            summed = (got - world_size * want).abs().max().item() <= world_size * allowed
            key = "summed" if summed else "wrong_again" if step else "wrong"
            return expect(case, False, key, name=name, off=f"{off:.2g}", allowed=f"{allowed:.2g}")
    return expect(case, True)
