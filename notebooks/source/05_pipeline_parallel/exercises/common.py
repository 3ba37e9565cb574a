"""What several checks of lesson 05 share."""

from dlcourse.course.exercises import describe, expect, largest

_MAKERS = ("gpipe", "one_f_one_b", "interleaved", "zb_h1", "zb_v", "dual_pipe_v")
LIBRARIES = (
    "torch.distributed.pipelining",
    *(f"dlcourse.parallel.pipeline_schedules:{name}" for name in _MAKERS),
)  # an answer may use the rest of the course: to parse, and to simulate


def judge_schedule(lines, *, num_ranks, micro_batches, activations, total):
    """Findings on paper, and the schedule if it may be run."""
    from dlcourse.parallel.pipeline_schedules import Schedule
    from dlcourse.parallel.pipeline_simulation import simulate

    if (
        not isinstance(lines, list | tuple)
        or len(lines) != num_ranks
        or not all(isinstance(line, str) for line in lines)
    ):
        return [expect("complete", False, "not_lines", got=describe(lines), want=num_ranks)], None
    try:
        schedule = Schedule.parse(lines)
        gantt = simulate(schedule)
    except ValueError as error:
        text = "; ".join(line.strip() for line in str(error).split("\n")).replace(":;", ":")
        case = "runs" if "deadlocks" in text else "complete"
        findings = [] if case == "complete" else [expect("complete", True)]
        return [*findings, expect(case, False, "said", text=text)], None
    if (schedule.num_micro_batches, schedule.num_chunks) != (micro_batches, 1):
        got = schedule.num_micro_batches
        return [expect("complete", False, "count", got=got, want=micro_batches)], None
    findings = [expect("complete", True), expect("runs", True)]
    for rank, got in enumerate(gantt.peak_in_flight):
        if got > activations[rank]:
            limit = activations[rank]
            findings.append(expect("memory", False, "too_many", rank=rank, got=got, limit=limit))
            break
    else:
        findings.append(expect("memory", True))
    idle = f"{gantt.idle_over_total:.1%}"
    short = gantt.total <= total + 1e-9
    limit = f"{total:.4g}"
    findings.append(
        expect("time", short, "too_long", got=f"{gantt.total:g}", idle=idle, limit=limit)
    )
    return findings, schedule


def run_schedule(schedule):
    """Train one step with it in real ranks, in float64, and compare with one process."""
    import torch

    from dlcourse.models.gpt import GPT, GPTConfig
    from dlcourse.parallel.pipeline import PipelineParallel

    config = GPTConfig(n_layer=schedule.num_ranks, n_head=2, n_embd=16, block_size=8)
    alone, ours = GPT(config).double(), GPT(config).double()
    random = torch.Generator().manual_seed(0)
    batch = torch.randint(256, (2, schedule.num_micro_batches, 8), generator=random)
    alone(*batch).backward()
    pipeline = PipelineParallel(ours, schedule)
    pipeline.step(*batch)
    wanted = dict(alone.named_parameters())
    off = torch.zeros((), dtype=torch.float64)
    for stage in pipeline.stages:
        for name, parameter in stage.named_parameters():
            off = torch.maximum(off, (parameter.grad - wanted[name].grad).abs().max())
    apart = largest(off)  # the ranks tell the same
    return expect("same", apart < 1e-12, "gradients", off=f"{apart:.2g}")
