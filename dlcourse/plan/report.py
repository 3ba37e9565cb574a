"""What ``dlcourse plan`` says: the choice, its rivals and why they lost, what more would change.

The words are in ``words/plan.toml``. ``record`` has the same as plain data, for ``--json``.
"""

from __future__ import annotations

from typing import Any

from dlcourse.figures.tables import Table
from dlcourse.plan.job import Job
from dlcourse.plan.launch import describe
from dlcourse.plan.layout_memory import MEMORY
from dlcourse.plan.layout_time import SECONDS
from dlcourse.plan.layouts import Layout
from dlcourse.plan.model_shape import active_numbers, total_numbers
from dlcourse.plan.plan_goodput import Failing, with_failures
from dlcourse.plan.planner import Answer
from dlcourse.plan.what_if import what_if
from dlcourse.words.strings import t
from dlcourse.words.units import digits

_SHARES = ("goodput", "checkpoint", "restart", "lost", "waiting")
_SIDES = ("data", "tensor", "pipeline", "context", "expert")


def layout_text(layout: Layout) -> str:
    """A layout in the language in use: "data 8 x tensor 8, ZeRO 1, micro-batch 2"."""
    sizes = {name: getattr(layout, name) for name in _SIDES}
    text = " x ".join(
        t(f"plan.layout.{name}", n=n) for name, n in sizes.items() if n > 1 or name == "data"
    )
    if layout.chunks > 1:
        text += f" ({t('plan.layout.chunks', n=layout.chunks)})"
    parts = [text, t("plan.layout.stage", n=layout.stage)]
    parts.append(t("plan.layout.micro_batch", n=layout.micro_batch))
    if layout.recompute != "none":
        parts.append(t(f"plan.layout.recompute.{layout.recompute}"))
    if layout.offload != "none":
        parts.append(t("plan.layout.offload"))
    return ", ".join(parts)


def why_text(answer: Answer, index: int) -> str:
    """Why a layout is not the choice, in one clause."""
    name, facts = answer.why(index)
    if name == "memory":
        most = t(f"plan.memory.{facts['most']}")
        return t("plan.why.memory", over=_gb(facts["over"]), most=most)
    if name == "host":
        return t("plan.why.host", over=_gb(facts["over"]))
    if name == "slower":
        most = t(f"plan.seconds.{facts['most']}")
        percent = f"{float(facts['percent']):.1f}"
        return t("plan.why.slower", percent=percent, most=most, more=f"{float(facts['more']):.3g}")
    return t("plan.why.same")


def report(
    answer: Answer,
    *,
    tokens: float | None = None,
    rows: int = 5,
    failing: Failing | None = None,
) -> str:
    """All of it as text."""
    job, best, simple = answer.job, answer.fastest, answer.simplest
    parts = [_head(job), count(answer), _choice("fastest", answer, best, tokens)]
    if simple == best:
        parts.append(t("plan.choice.same"))
    else:
        parts.append(_choice("simplest", answer, simple, tokens))
    if failing:
        parts.append(_failures(answer, simple, failing, tokens))
    parts += [repr(_split(answer, simple)), repr(_rivals(answer, rows)), _changes(answer)]
    return "\n\n".join(parts)


def _head(job: Job) -> str:
    return t(
        "plan.head",
        model=job.shape.name,
        parameters=f"{total_numbers(job.shape) / 1e9:.2f}",
        active=f"{active_numbers(job.shape) / 1e9:.2f}",
        gpus=job.cluster.gpus,
        gpu=job.cluster.gpu,
        memory=_gb(job.cluster.memory),
        batch=job.batch_tokens,
        sequence=job.sequence,
    )


def count(answer: Answer) -> str:
    """How many layouts there are, and how many fit."""
    return t("plan.count", all=len(answer.layouts), fit=int(answer.fits.sum()))


def _choice(kind: str, answer: Answer, index: int, tokens: float | None) -> str:
    numbers = answer.numbers(index, tokens=tokens)
    lines = [t(f"plan.choice.{kind}", layout=layout_text(answer.layouts[index]))]
    lines.append(
        "  "
        + t(
            "plan.choice.numbers",
            seconds=f"{numbers['seconds']:.3g}",
            rate=round(numbers["tokens_per_second"]),
            mfu=f"{100 * numbers['mfu']:.1f}",
            hfu=f"{100 * numbers['hfu']:.1f}",
            memory=_gb(numbers["memory"]),
        )
    )
    if tokens:
        days, hours = f"{numbers['days']:.1f}", round(numbers["gpu_hours"])
        lines.append("  " + t("plan.choice.budget", tokens=f"{tokens:.3g}", days=days, hours=hours))
    return "\n".join(lines)


def _failures(answer: Answer, index: int, failing: Failing, tokens: float | None) -> str:
    """Goodput, and the days that come of it."""
    found = with_failures(answer, index, failing, tokens=tokens)
    lines = [
        t(
            "plan.failures",
            node=f"{failing.mtbf_hours:,.4g}",
            job=digits(found["job_mtbf_hours"]),
            checkpoint=f"{failing.checkpoint_seconds:g}",
            interval=digits(found["interval_minutes"]),
        )
    ]
    shares = {n: f"{100 * found[n]:.1f}" for n in _SHARES}
    lines.append("  " + t("plan.failures.shares", **shares))
    if tokens:
        days, hours = f"{found['days']:.1f}", round(found["gpu_hours"])
        lines.append("  " + t("plan.choice.budget", tokens=f"{tokens:.3g}", days=days, hours=hours))
    return "\n".join(lines)


def _split(answer: Answer, index: int) -> Table:
    """Memory by category, and seconds by what they are spent on, of one layout."""
    held = [(t(f"plan.memory.{n}"), _gb(answer.memory[n][index])) for n in MEMORY]
    spent = [(t(f"plan.seconds.{n}"), f"{answer.seconds[n][index]:.3f}") for n in SECONDS]
    held.append((t("plan.together"), _gb(answer.memory["total"][index])))
    spent.append((t("plan.together"), f"{answer.seconds['total'][index]:.3f}"))
    spent += [("", "")] * (len(held) - len(spent))
    header = [t("plan.column.memory"), "GB", t("plan.column.seconds"), "s"]
    rows = [[*h, *s] for h, s in zip(held, spent, strict=True)]
    return Table(header, rows, caption=t("plan.split", layout=layout_text(answer.layouts[index])))


def _rivals(answer: Answer, rows: int) -> Table:
    header = [t(f"plan.column.{n}") for n in ("way", "layout", "rate", "memory_gb", "lost")]
    table = []
    for name, index in answer.best_of_families().items():
        rate = "-"
        if answer.fits[index]:
            rate = f"{answer.numbers(index)['tokens_per_second']:,.0f}"
        way, layout = t(f"plan.family.{name}"), layout_text(answer.layouts[index])
        held = _gb(answer.memory["total"][index])
        table.append([way, layout, rate, held, why_text(answer, index)])
    for index in answer.order[1:rows]:
        number = int(index)
        rate = f"{answer.numbers(number)['tokens_per_second']:,.0f}"
        held, layout = _gb(answer.memory["total"][number]), layout_text(answer.layouts[number])
        table.append([t("plan.family.next"), layout, rate, held, why_text(answer, number)])
    return Table(header, table, caption=t("plan.rivals"))


def changes(answer: Answer) -> list[tuple[str, str]]:
    """What a little more would change: of what, and by how much."""
    lines = []
    for name, facts in what_if(answer).items():
        what = t(f"plan.more.{name}", memory=_gb(facts.get("memory", 0)))
        if "whole_nodes" in facts:
            said = t("plan.more.whole_nodes", gpus=facts["gpus"], node=facts["whole_nodes"])
        elif "refused" in facts:
            said = str(facts["refused"])
        else:
            percent = f"{100 * (float(facts['faster']) - 1):+.1f}"
            rate = round(float(facts["tokens_per_second"]))
            said = t("plan.more.rate", rate=rate, percent=percent)
            if facts["batch_tokens"] != answer.job.batch_tokens:
                said += t("plan.more.batch", batch=facts["batch_tokens"])
        lines.append((what, said))
    return lines


def _changes(answer: Answer) -> str:
    lines = [f"  {what}: {said}" for what, said in changes(answer)]
    return "\n".join([t("plan.more"), *lines])


def layout_report(
    answer: Answer, *, tokens: float | None = None, failing: Failing | None = None
) -> str:
    """One layout, the first, that has been judged alone: its numbers and what they go to."""
    parts = [_head(answer.job), _choice("given", answer, 0, tokens)]
    if not answer.fits[0]:
        parts.append(why_text(answer, 0))
    if failing:
        parts.append(_failures(answer, 0, failing, tokens))
    return "\n\n".join([*parts, repr(_split(answer, 0))])


def layout_record(
    answer: Answer, index: int, *, tokens: float | None = None, failing: Failing | None = None
) -> dict[str, Any]:
    """One layout of an answer as plain data; with ``failing`` also what failures make of it."""
    layout = answer.layouts[index]
    reason, facts = answer.why(index)
    return {
        "layout": dict(vars(layout)),
        "text": describe(layout),
        "fits": bool(answer.fits[index]),
        **answer.numbers(index, tokens=tokens),
        "memory_bytes": {n: float(answer.memory[n][index]) for n in (*MEMORY, "total")},
        "step_seconds": {n: float(answer.seconds[n][index]) for n in (*SECONDS, "total")},
        "why": {"reason": reason, **facts},
        **({"failures": with_failures(answer, index, failing, tokens=tokens)} if failing else {}),
    }


def record(
    answer: Answer, *, tokens: float | None = None, failing: Failing | None = None
) -> dict[str, Any]:
    """The answer as plain data."""
    job = answer.job

    def one(index: int) -> dict[str, Any]:
        return layout_record(answer, index, tokens=tokens, failing=failing)

    return {
        "model": job.shape.name,
        "parameters": total_numbers(job.shape),
        "active_parameters": active_numbers(job.shape),
        "gpu": job.cluster.gpu,
        "gpus": job.cluster.gpus,
        "batch_tokens": job.batch_tokens,
        "sequence": job.sequence,
        "layouts": len(answer.layouts),
        "fit": int(answer.fits.sum()),
        "fastest": one(answer.fastest),
        "simplest": one(answer.simplest),
        "families": {name: one(index) for name, index in answer.best_of_families().items()},
        "what_if": what_if(answer),
    }


def _gb(nbytes: float | str) -> str:
    return f"{float(nbytes) / 1e9:,.1f}"
