"""The planner beside one rank of thousands: the same bytes, and the same memory?

    agreement(scale(model="7b", world=16384, tensor=8, stage=3))

States and collectives are to agree to the byte, activations within 5%. What the course's classes
keep and send beside what the planner counts is known, and counted here: numbers that stand for
parameters which ZeRO has away, AdamW's step counters, and the few bytes of ``bookkeeping``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from dlcourse.figures.tables import Table
from dlcourse.formulas.parameters import LAYER_TENSORS
from dlcourse.formulas.sizes import MODELS, GPTConfig
from dlcourse.formulas.states import CATEGORIES, STEP_COUNTER_BYTES
from dlcourse.plan.cluster import cluster_of
from dlcourse.plan.job import Job
from dlcourse.plan.layout_bytes import layout_bytes
from dlcourse.plan.layout_memory import rank_memory, unit_numbers
from dlcourse.plan.layouts import Layout, Layouts, stage_layers
from dlcourse.plan.model_shape import gpt_shape
from dlcourse.words.strings import t

ALLOWED = 0.05  # of activations
_EXPERT_LAYER_TENSORS = 14  # four matrices and a bias of attention, two norms, a router, experts


@dataclass(frozen=True)
class Line:
    """One figure: of the fake rank, and of the planner. allowed: share they may be apart."""

    what: str
    rank: float
    planner: float
    allowed: float = 0.0

    @property
    def apart(self) -> float:
        """The planner's over the rank's, less 1."""
        if self.rank == self.planner:
            return 0.0
        return self.planner / self.rank - 1 if self.rank else float("inf")

    @property
    def holds(self) -> bool:
        return abs(self.apart) <= self.allowed


@dataclass(frozen=True)
class Agreement:
    """All lines; shown as a table."""

    lines: list[Line]

    @property
    def holds(self) -> bool:
        return all(line.holds for line in self.lines)

    def table(self) -> Table:
        header = [t(f"plan.agree.{name}") for name in ("what", "rank", "planner", "apart")]
        rows = [
            [line.what, f"{line.rank:,.0f}", f"{line.planner:,.0f}", _apart(line)]
            for line in self.lines
        ]
        key = "plan.agree.holds" if self.holds else "plan.agree.not"
        return Table(header, rows, caption=t(key, percent=f"{100 * ALLOWED:.0f}"))

    def __repr__(self) -> str:
        return repr(self.table())


def _apart(line: Line) -> str:
    return "=" if line.apart == 0 else f"{100 * line.apart:+.2f}%"


def planned(job: dict[str, Any], config: GPTConfig) -> tuple[Job, Layout, str]:
    """The planner's job and layout of a scaled one's, and the stage that its rank is.

    What the course's classes do: float32, all-reduces around each layer, whole messages between
    stages, which know the whole vocabulary.
    """
    experts: dict[str, Any] = {}
    if job["experts"]:
        experts = {"experts": job["experts"], "top_k": job["top_k"], "moe_layers": config.n_layer}
        experts["expert_ffn"] = 4 * config.n_embd // job["top_k"]
    data = job["data"] * job["expert"]
    micro_batches = job["micro_batches"]
    plan = Job(
        shape=gpt_shape(config, job["model"], **experts),
        cluster=cluster_of("h100", gpus=job["world"], node=job["tensor"] * job["expert"]),
        batch_tokens=data * job["micro_batch"] * micro_batches * job["block"],
        sequence=job["block"],
        states="float32",
        kernels="eager",
        dispatch="plain",
        cut_experts=True,
        sequence_parallel=False,
        split_messages=False,
        vocab_parallel=job["pipeline"] == 1,
    )
    layout = Layout(
        data=data,
        tensor=job["tensor"],
        pipeline=job["pipeline"],
        expert=job["expert"],
        stage=job["stage"],
        micro_batch=job["micro_batch"],
    )
    number = job["rank"] // (job["tensor"] * job["expert"]) % job["pipeline"]
    last = number == job["pipeline"] - 1
    return plan, layout, "first" if number == 0 else "last" if last else "middle"


def bookkeeping(job: dict[str, Any], config: GPTConfig) -> Counter[tuple[str, int]]:
    """Bytes by (collective, ranks) that the course's classes send beside what is trained."""
    found: Counter[tuple[str, int]] = Counter()
    plan, layout, stage = planned(job, config)
    layers = _layers(plan, Layouts.of([layout]))[stage]
    batch, flats = layout.data, _flats(job, layers)
    if job["experts"]:  # to each rank of the batch: rows for each expert, with three checks
        counts = 8 * (job["experts"] + 3) * batch * layers * job["micro_batches"]
        found["all_gather", batch] += counts
        if job["stage"] == 0:  # once a step the routers' biases, which are no parameters
            found["broadcast", batch] += 4 * job["experts"] * layers
    if job["pipeline"] > 1 or (job["stage"] < 2 and not job["experts"]):
        found["all_reduce", job["world"]] += 16  # targets of the batch
        for side in (batch, job["pipeline"]):  # the loss
            found["all_reduce", side] += 4
    if job["stage"]:  # of each flat tensor whether it has gradients; from 2 on also if it was used
        found["all_reduce", batch] += 8 * flats * (2 if job["stage"] >= 2 else 1)
    return found


def _flats(job: dict[str, Any], layers: int) -> int:
    """Flat tensors of ZeRO in a rank: of each unit one, and one of its experts."""
    if job["pipeline"] > 1:  # a stage is one unit
        return 2 if job["experts"] else 1
    return layers + 1 + (layers if job["experts"] else 0)


def agreement(scaled: Any, config: GPTConfig | None = None) -> Agreement:
    """Line by line: states between two steps, activations at their peak, bytes by collective.

    Args:
        scaled: of ``scale``. config: sizes of its model, where it is none of ``MODELS``.
    """
    record = scaled.record
    job = record["job"]
    config = config or MODELS[job["model"]]
    plan, layout, stage = planned(job, config)
    one = Layouts.of([layout])
    held = {name: float(size[0]) for name, size in rank_memory(plan, one, stage).items()}
    tensors = _tensors(job, config, plan, one, stage)
    layers = _layers(plan, one)[stage]
    if job["stage"] in (1, 2):  # whole, but side by side, padded to a multiple of the ranks
        padded = 0.0
        for sizes in unit_numbers(plan, layout, layers, stage):
            for numbers, ranks in zip(sizes, (layout.data, job["data"]), strict=True):
                padded += 4 * (-(-numbers // ranks) * ranks)
        held["parameters"] = padded
        held["gradients"] = padded if job["stage"] == 1 else held["gradients"]
    if job["stage"] == 3:  # one number stands for a flat tensor that is away
        held["parameters"] += 4 * _flats(job, layers)
    if job["stage"]:
        tensors = _flats(job, layers)
    held["optimizer_state"] += STEP_COUNTER_BYTES * tensors
    lines = [Line(t(f"category.{n}"), scaled.kept[n], held[n]) for n in CATEGORIES]
    activations = held["activations"] + held["logits"]
    peak = _peak_activations(record)
    lines.append(Line(t("category.activations"), peak, activations, ALLOWED))
    wanted: Counter[tuple[str, int]] = Counter(bookkeeping(job, config))
    for message in layout_bytes(plan, layout, stage=stage):
        wanted[message.op, message.ranks] += round(message.nbytes)
    measured = {(row["op"], row["group_size"]): row["bytes"] for row in scaled.comm}
    for op, ranks in sorted({*wanted, *measured}):
        if ranks > 1:
            what = t("plan.agree.collective", op=op, ranks=ranks)
            lines.append(Line(what, measured.get((op, ranks), 0), wanted[op, ranks]))
    return Agreement(lines)


def _peak_activations(record: dict[str, Any]) -> int:
    """At the step's highest moment, while the optimizer is not at work; else at their own.

    With one micro-batch gradients grow while activations shrink, and the highest moment of both is
    another. With several and ZeRO 1 or 2, gradients that grow beside those of earlier ones count as
    activations until the ledger looks at the next highest moment: there it is right. Stage 3 keeps
    none beside them, and its highest moment may be one of gathered parameters.
    """
    memory = record["memory"]
    at_peak, own = memory["at_peak"]["activations"], memory["peaks"]["activations"]
    several = record["job"]["micro_batches"] > 1 and record["job"]["stage"] in (1, 2)
    return at_peak if several and at_peak > own / 2 else own


def _layers(plan: Job, one: Layouts) -> dict[str, int]:
    counts = (int(n[0]) for n in stage_layers(plan, one))
    return dict(zip(("first", "middle", "last"), counts, strict=True))


def _tensors(job: dict[str, Any], config: GPTConfig, plan: Job, one: Layouts, stage: str) -> int:
    """Parameters of the rank, for each of which AdamW counts its steps."""
    layers = _layers(plan, one)[stage]
    alone = job["pipeline"] == 1
    found = layers * (_EXPERT_LAYER_TENSORS if job["experts"] else LAYER_TENSORS)
    found += 2 if alone or stage == "first" else 0  # embeddings of tokens and positions
    found += 2 if alone or stage == "last" else 0  # the last norm
    own_head = not config.tie_embeddings or not alone
    return found + (own_head if alone or stage == "last" else 0)
