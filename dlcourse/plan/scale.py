"""One rank of thousands: a training step on tensors that have shapes and no numbers.

The classes of ``dlcourse.parallel`` run as they are, in a fake process group of 1,024 ranks
(``fake_group.py``); fake tensors take no memory. What remains exact is what the lessons are about:
the bytes of each category in this rank, and the bytes of each collective that it calls. Times mean
nothing here.

    dlcourse scale 06_zero --model 7b --world 1024
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from dlcourse.figures.tables import Table
from dlcourse.formulas.recipe import STAGES
from dlcourse.formulas.sizes import MODELS, ArchitectureConfig
from dlcourse.formulas.traffic import wire_bytes
from dlcourse.measure.categories import CATEGORIES
from dlcourse.plan.fake_group import fake_process_group, peak_rss_bytes
from dlcourse.words.refusal import Refusal
from dlcourse.words.strings import t
from dlcourse.words.units import human_bytes, human_seconds

# What each lesson divides the model by
LESSONS = {
    "03_data_parallel": {},
    "04_tensor_parallel": {"tensor": 8},
    "05_pipeline_parallel": {"tensor": 8, "pipeline": 8, "micro_batches": 8},
    "06_zero": {"tensor": 8, "stage": 3},
    "08_expert_parallel": {"expert": 64, "experts": 256, "top_k": 8},
}

# Beyond, sizes overflow, or one step takes hours: it is gone through micro-batch by micro-batch.
# torch makes every group of the mesh, this rank's or not: hundreds of thousands in this world, in
# some ten seconds and 0.5 GB; of a million ranks in minutes.
LARGEST = {"world": 262_144, "micro_batch": 1_000_000, "micro_batches": 10_000}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained on how many ranks.

    Args:
        model: one of ``MODELS``.
        world: number of ranks: data x pipeline x expert x tensor.
        tensor, pipeline: sides of the mesh; data is what remains.
        stage: ZeRO stage over the ranks that have the same parameters, 0 for whole copies.
        experts: of each layer, 0 for a dense model. They are so wide that a token's ``top_k``
            together are one MLP, and get equally many tokens: what a real router makes of it is
            not known without numbers.
        top_k: experts that a token uses.
        expert: ranks that share them, each with its own tokens; the ranks along ``tensor`` hold a
            part of each expert.
        rank: which rank to be.
        micro_batch: sequences that a rank works on at a time.
        micro_batches: how many of them a step has; at least as many as ``pipeline``.
        block: tokens of a sequence.

    Raises:
        ValueError: sizes that do not divide or do not fit together; it names both numbers.
    """

    model: str = "7b"
    world: int = 1024
    tensor: int = 1
    pipeline: int = 1
    stage: int = 0
    experts: int = 0
    top_k: int = 8
    expert: int = 1
    rank: int = 0
    micro_batch: int = 1
    micro_batches: int = 1
    block: int = 2048

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            known = ", ".join(MODELS)
            raise Refusal("refusal.one_of", name="model", value=repr(self.model), known=known)
        whole = ("world", "tensor", "pipeline", "expert", "micro_batch", "micro_batches", "block")
        for name in whole:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise Refusal("refusal.whole", name=name, value=repr(value), least=1)
        for name, largest in LARGEST.items():
            if getattr(self, name) > largest:
                value = getattr(self, name)
                raise Refusal("refusal.most", name=name, value=value, most=largest)
        config = MODELS[self.model]
        if self.experts or self.expert > 1:
            self._check_experts()
        ranks = self.data * self.expert * self.pipeline * self.tensor
        if ranks != self.world:
            sides = f"{self.data * self.expert} x {self.pipeline} x {self.tensor}"
            raise Refusal("refusal.scale.mesh", sides=sides, ranks=ranks, world=self.world)
        if config.n_head % self.tensor:
            heads = {"heads": config.n_head, "tensor": self.tensor}
            raise Refusal("refusal.scale.heads", model=self.model, **heads)
        if type(self.rank) is not int or not 0 <= self.rank < self.world:
            raise Refusal("refusal.scale.rank", rank=repr(self.rank), last=self.world - 1)
        if self.stage not in STAGES:
            raise Refusal("refusal.stage", stage=repr(self.stage))
        if self.pipeline > 1 and self.stage > 1:
            both = {"stage": self.stage, "pipeline": self.pipeline}
            raise Refusal("refusal.scale.stage", **both)
        if self.pipeline > config.n_layer:
            sizes = {"pipeline": self.pipeline, "layers": config.n_layer}
            raise Refusal("refusal.scale.layers", model=self.model, **sizes)
        if self.pipeline > 1 and self.micro_batches < self.pipeline:
            given = {"micro_batches": self.micro_batches, "pipeline": self.pipeline}
            raise Refusal("refusal.scale.micro_batches", **given)
        if self.block > config.block_size:
            lengths = {"block": self.block, "most": config.block_size}
            raise Refusal("refusal.scale.block", model=self.model, **lengths)

    def _check_experts(self) -> None:
        if type(self.experts) is not int or self.experts < 1:
            raise Refusal("refusal.whole", name="experts", value=repr(self.experts), least=1)
        if type(self.top_k) is not int or not 1 <= self.top_k <= self.experts:
            given = {"top_k": repr(self.top_k), "experts": self.experts}
            raise Refusal("refusal.scale.top_k_most", **given)
        if self.experts % self.expert:
            shared = {"experts": self.experts, "expert": self.expert}
            raise Refusal("refusal.scale.experts", **shared)
        hidden = 4 * MODELS[self.model].n_embd
        if hidden % self.top_k:
            sizes = {"top_k": self.top_k, "hidden": hidden}
            raise Refusal("refusal.scale.top_k", model=self.model, **sizes)
        width = hidden // self.top_k
        if width % self.tensor:
            cut = {"tensor": self.tensor, "width": width, "top_k": self.top_k}
            raise Refusal("refusal.scale.width", model=self.model, **cut)
        if self.world % (self.expert * self.pipeline * self.tensor):
            sides = f"expert={self.expert} x pipeline={self.pipeline} x tensor={self.tensor}"
            sides = sides if self.pipeline * self.tensor > 1 else f"expert={self.expert}"
            raise Refusal("refusal.scale.world", sides=sides, world=self.world)

    @property
    def data(self) -> int:
        """How many copies of the model, or of each expert, there are."""
        return max(1, self.world // (self.tensor * self.pipeline * self.expert))


def measure(job: Job) -> dict[str, Any]:
    """Take one step as one rank of ``job.world``.

    Needs a process without a process group.

    Returns:
        A record as in ``dlcourse.measure.run``; and "job", "parameters" (of the whole model),
        "sides" (names of this rank's groups by the mesh's sides), "seconds" (of this machine) and
        "peak_rss_bytes" (of this process).
    """
    started = time.perf_counter()
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dlcourse.measure.recorder import Recorder

    with fake_process_group(job.rank, job.world):
        mesh = _job_mesh(job)
        sides = {name: mesh.get_group(name).group_name for name in mesh.mesh_dim_names}
        with FakeTensorMode(allow_non_fake_inputs=True):
            gpt = _job_model(job)
            parameters = gpt.num_parameters()
            step = _job_step(job, mesh, gpt)
            del gpt  # of a pipeline's model, this rank keeps its own layers only
            batch = (job.micro_batch * job.micro_batches, job.block)
            tokens = torch.zeros(batch, dtype=torch.long)
            with Recorder(job.rank, job.world) as recorder:
                step(tokens, tokens)
    return recorder.record | {
        "job": asdict(job) | {"data": job.data},
        "parameters": parameters,
        "sides": sides,
        "seconds": time.perf_counter() - started,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _job_mesh(job: Job) -> Any:
    from dlcourse.parallel.expert_groups import make_expert_mesh
    from dlcourse.parallel.expert_mesh import make_full_mesh
    from dlcourse.parallel.mesh import make_mesh

    if job.experts and job.pipeline > 1:
        sides = {"data": job.data, "pipeline": job.pipeline, "expert": job.expert}
        return make_full_mesh(**sides, tensor=job.tensor)
    if job.experts:
        return make_expert_mesh(data=job.data, expert=job.expert, tensor=job.tensor)
    return make_mesh(data=job.data, pipeline=job.pipeline, tensor=job.tensor)


def _job_model(job: Job) -> Any:
    from dlcourse.models.gpt import GPT

    if not job.experts:
        return GPT(MODELS[job.model])
    from dlcourse.models.architectures import ArchitectureGPT

    config = ArchitectureConfig(
        **asdict(MODELS[job.model]),
        feed_forwards=("moe",),
        num_experts=job.experts,
        top_k=job.top_k,
    )
    return ArchitectureGPT(config)


def _job_step(job: Job, mesh: Any, gpt: Any) -> Any:
    """The model on its mesh with its optimizer: a function that takes one step."""
    import torch

    from dlcourse.parallel.expert_mesh import ExpertMeshParallel
    from dlcourse.parallel.expert_zero import expert_zero
    from dlcourse.parallel.mesh import MeshParallel
    from dlcourse.parallel.tensor import tensor_parallel
    from dlcourse.parallel.zero2 import ZeRO2
    from dlcourse.parallel.zero3 import ZeRO3
    from dlcourse.plan.expert_scale import balance, expert_step

    if job.experts and job.pipeline == 1 and job.stage == 0:
        return expert_step(gpt, mesh, job.micro_batches)
    if job.pipeline > 1 or (job.stage < 2 and not job.experts):
        composed = ExpertMeshParallel if job.experts else MeshParallel
        model = composed(gpt, mesh, num_micro_batches=job.micro_batches, zero=job.stage == 1)
        balance(model)
        optimizer = model.optimizer()

        def step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
            model.step(tokens, targets)
            optimizer.step()
            model.sync_parameters()

        return step
    sharded: Any
    if job.experts:
        sharded = expert_zero(gpt, mesh, stage=job.stage)
        balance(sharded)
    else:
        if job.tensor > 1:
            gpt = tensor_parallel(gpt, mesh["tensor"])
        sharded = (ZeRO2 if job.stage == 2 else ZeRO3)(gpt, process_group=mesh.get_group("data"))
    optimizer = torch.optim.AdamW(sharded.shards)

    def zero_step(tokens: torch.Tensor, targets: torch.Tensor) -> None:
        parts = zip(tokens.chunk(job.micro_batches), targets.chunk(job.micro_batches), strict=True)
        for x_BT, y_BT in parts:
            (sharded(x_BT, y_BT) / job.micro_batches).backward()
        sharded.sync_gradients()
        optimizer.step()
        sharded.sync_parameters()

    return zero_step


class Scaled:
    """What one step is, for one rank of thousands: see ``scale``.

    Attributes:
        record: as the recorder gives it, with "job", "parameters", "sides", "seconds",
            "peak_rss_bytes".
        kept: bytes by category that stay between two steps.
        at_peak: bytes by category at the step's highest moment.
        comm: a row for each kind of collective and size of group.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.kept: dict[str, int] = record["memory"]["end"]
        self.at_peak: dict[str, int] = record["memory"]["at_peak"]
        self.seconds, self.peak_rss_bytes = record["seconds"], record["peak_rss_bytes"]
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for event in [*record["comm"], *record.get("comm_rest", [])]:
            op, size = event["op"], event["group_size"]
            new = {"op": op, "group_size": size, "calls": 0, "bytes": 0, "sent_bytes": 0.0}
            row = rows.setdefault((op, size), new)
            row["calls"] += event.get("calls", 1)
            row["bytes"] += event["bytes"]
            row["sent_bytes"] += wire_bytes(op, event["bytes"], size)
        self.comm = sorted(rows.values(), key=lambda row: -row["bytes"])

    @property
    def sent_bytes(self) -> float:
        """What this rank sends in one step, in theory."""
        return sum(row["sent_bytes"] for row in self.comm)

    def memory_table(self) -> Table:
        """A row for each category; GB is 1e9 bytes, as in the papers."""
        job = self.record["job"]
        rows = [
            [t(f"category.{name}"), _gb(self.kept[name]), _gb(self.at_peak[name])]
            for name in CATEGORIES
        ]
        caption = "plan.memory_experts" if job["experts"] else "plan.memory"
        total = [_gb(sum(self.kept.values())), _gb(sum(self.at_peak.values()))]
        return Table(
            [t("plan.category"), t("plan.kept"), t("plan.peak")],
            [*rows, [t("plan.together"), *total]],
            caption=t(caption, parameters=self.record["parameters"], **job),
        )

    def comm_table(self) -> Table:
        """A row for each kind of collective and size of group."""
        header = ("plan.op", "plan.group", "plan.calls", "plan.buffers", "plan.sent")
        rows = [
            [row["op"], row["group_size"], row["calls"], _gb(row["bytes"]), _gb(row["sent_bytes"])]
            for row in self.comm
        ]
        return Table([t(key) for key in header], rows, caption=t("plan.comm"))

    def __repr__(self) -> str:
        return f"{self.memory_table()!r}\n\n{self.comm_table()!r}\n\n{self._costs()}"

    def _repr_html_(self) -> str:
        parts = [self.memory_table()._repr_html_(), self.comm_table()._repr_html_()]
        return "<br>".join([*parts, self._costs()])

    def _costs(self) -> str:
        memory = human_bytes(self.peak_rss_bytes)
        return t("plan.seconds", seconds=human_seconds(self.seconds), memory=memory)


def _gb(count: float) -> str:
    return f"{count / 1e9:,.3f}"


def scale(lesson: str | None = None, **job: Any) -> Scaled:
    """Take one training step as one rank of thousands, in a process of its own.

    Args:
        lesson: whose parallelism to begin with, one of ``LESSONS``; none is data parallelism.
        job: what differs from it, see ``Job``: ``model="7b", world=1024, tensor=8, stage=3``.

    Raises:
        ValueError: an unknown lesson, or sizes that do not divide; before anything starts.
        RuntimeError: the step failed; with the process's last words.
    """
    if lesson is not None and lesson not in LESSONS:
        raise Refusal("refusal.scale.lesson", lesson=repr(lesson), known=", ".join(LESSONS))
    wanted = Job(**((LESSONS[lesson] if lesson else {}) | job))
    from dlcourse.ranks.notebook.agent_process import AgentProcess

    given = json.dumps(asdict(wanted))
    record = _in_a_rank(given) if AgentProcess.forks_here() else _in_a_new_process(given)
    return Scaled(json.loads(record))


def _in_a_rank(given: str) -> str:
    """The record from a pool of one: forked, it shares torch, 170 MB, with the other ranks."""
    from dlcourse.ranks import RankError, Ranks
    from dlcourse.ranks.notebook.front_end import without_a_panel

    try:
        with without_a_panel(), Ranks(1, device="cpu", default=False) as alone:
            return alone.run(_without_its_group, given)[0]
    except RankError as error:
        raise RuntimeError(f"the step failed:\n{error}") from None


def _without_its_group(given: str) -> str:
    """In that rank, whose process group makes room for the fake one."""
    import torch.distributed as dist

    dist.destroy_process_group()
    return _measured(given)


def _in_a_new_process(given: str) -> str:
    command = [sys.executable, "-m", "dlcourse.plan.scale", given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the step failed:\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def _measured(given: str) -> str:
    """``measure`` of a job in JSON."""
    gc.disable()  # one step leaves little garbage; looking for it takes a tenth of the time
    return json.dumps(measure(Job(**json.loads(given))))


if __name__ == "__main__":
    print(_measured(sys.argv[1]))
