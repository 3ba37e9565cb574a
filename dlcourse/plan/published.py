"""Runs that others have measured, as jobs and layouts of the planner: prediction beside figure.

    for row in sc21(read(course_root() / "data" / "published_runs.json")):
        print(row.name, row.measured, row.predicted, row.error)

What a source does not say (Megatron-Core's micro-batch and chunks) is chosen by a rule that is
written down here, the same for all of its rows. What software of its year could not do yet is
switched off.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlcourse.plan.cluster import Cluster, cluster_of
from dlcourse.plan.hf_config import published_model
from dlcourse.plan.job import Job
from dlcourse.plan.layout_space import divisors
from dlcourse.plan.layout_time import model_flops
from dlcourse.plan.layouts import Layout, Layouts
from dlcourse.plan.model_shape import ModelShape
from dlcourse.plan.planner import Answer, evaluate

Rows = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published run: "measured" and "predicted" have the unit that its source has."""

    name: str
    measured: float
    predicted: float
    memory: float  # bytes of the fullest rank, predicted
    answer: Answer

    @property
    def error(self) -> float:
        """Of the prediction, as a share of the measured figure."""
        return self.predicted / self.measured - 1


def read(path: str | Path) -> Rows:
    """The file of published figures."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def gpt(name: str, layers: int, hidden: int, heads: int, vocab: int, **other: Any) -> ModelShape:
    """A GPT as Megatron's papers have it: dropout, biases everywhere, learned positions."""
    sizes: dict[str, Any] = dict(kv_heads=heads, head_dim=hidden // heads, ffn=4 * hidden)
    sizes |= dict(value_dim=hidden // heads, gated=False, tied=True, positions=2048)
    biases = ("norm_bias", "qkv_bias", "out_bias", "mlp_bias")
    sizes |= dict.fromkeys(biases, True) | {"dropout": True} | other
    return ModelShape(name=name, layers=layers, hidden=hidden, heads=heads, vocab=vocab, **sizes)


def _row(name: str, measured: float, job: Job, layout: Layout, predict: Any) -> Row:
    answer = evaluate(job, Layouts.of([layout]))
    seconds = float(answer.seconds["total"][0])
    memory = float(answer.memory["total"][0])
    return Row(
        name=name, measured=measured, predicted=predict(seconds), memory=memory, answer=answer
    )


def _narayanan_flops(layers: int, hidden: int, vocab: int, tokens: int, sequence: int) -> float:
    """Of a step with full recomputation: 96 tokens l h^2 (1 + s/6h + V/16lh)."""
    more = 1 + sequence / (6 * hidden) + vocab / (16 * layers * hidden)
    return 96 * tokens * layers * hidden**2 * more


def sc21(rows: Rows) -> list[Row]:
    """Megatron-LM on A100, SC 2021, table 1: TFLOP/s of a GPU.

    Chunks and DDP are those of the authors' scripts: torch's, which overlaps, without a pipeline;
    beside one Megatron's own, which does not. Else software of 2021: unfused attention, no overlap
    of collectives or messages, gradients of 16 bits summed by kernels of their own.
    """
    data, found = rows["sc21"], []
    s, vocab = data["sequence"], data["vocab"]
    for name, layers, h, heads, t, p, b, gpus, batch, tflops, _ in data["rows"]:
        v = data["chunks"].get(name, 1)
        job = Job(
            shape=gpt(name, layers, h, heads, vocab),
            cluster=cluster_of("a100", gpus=gpus),
            batch_tokens=batch * s,
            sequence=s,
            states="bf16",
            attention="unfused",
            sequence_parallel=False,
            overlap_data=p == 1,
            overlap_backward=False,
            overlap_pipeline=False,
        )
        layout = Layout(
            data=gpus // (t * p),
            tensor=t,
            pipeline=p,
            chunks=v,
            micro_batch=b,
            recompute="full",
            schedule="interleaved" if v > 1 else "1f1b",
        )
        flops = _narayanan_flops(layers, h, vocab, batch * s, s) / gpus / 1e12
        found.append(_row(name, tflops, job, layout, lambda seconds, f=flops: f / seconds))
    return found


def korthikanti(rows: Rows) -> list[Row]:
    """Megatron-LM on A100, 2022: seconds of a step, without and with sequence parallelism and
    selective recomputation."""
    data, found = rows["korthikanti"], []
    s, vocab = data["sequence"], data["vocab"]
    for name, layers, h, heads, p, v, batch, b, full, selective, _, _ in data["rows"]:
        for recompute, seconds in (("full", full), ("selective", selective)):
            job = Job(
                shape=gpt(name, layers, h, heads, vocab),
                cluster=cluster_of("a100", gpus=8 * p),
                batch_tokens=batch * s,
                sequence=s,
                states="bf16",
                attention="unfused",
                sequence_parallel=recompute == "selective",
                overlap_pipeline=False,
            )
            layout = Layout(
                tensor=8,
                pipeline=p,
                chunks=v,
                micro_batch=b,
                recompute=recompute,
                schedule="interleaved" if v > 1 else "1f1b",
            )
            found.append(_row(f"{name} {recompute}", seconds, job, layout, float))
    return found


def megatron_core(rows: Rows) -> list[Row]:
    """Megatron-Core r0.8 on H100: TFLOP/s of a GPU.

    Micro-batch and chunks are not published: the planner's fastest of micro-batch 1, 2, 4 and of
    all chunks that divide, among those that fit.
    """
    data, found = rows["megatron_core"], []
    s, vocab = data["sequence"], data["vocab"]
    for name, h, layers, heads, t, p, gpus, batch, tflops in data["rows"]:
        d = gpus // (t * p)
        job = Job(
            shape=gpt(name, layers, h, heads, vocab, positions=0, dropout=False, tied=False),
            cluster=cluster_of("h100", gpus=gpus),
            batch_tokens=batch * s,
            sequence=s,
            overlap_tensor=True,
        )
        chunks = [1] if p == 1 else divisors(layers // p)
        layouts = [
            Layout(
                data=d,
                tensor=t,
                pipeline=p,
                chunks=v,
                stage=1,
                micro_batch=b,
                schedule="interleaved" if v > 1 else "1f1b",
            )
            for b in (1, 2, 4)
            for v in chunks
            if batch % (d * b) == 0 and (v == 1 or batch // (d * b) % p == 0)
        ]
        answer = evaluate(job, Layouts.of(layouts))
        flops = 0.75 * _narayanan_flops(layers, h, vocab, batch * s, s) / gpus / 1e12
        layout = answer.layouts[answer.fastest]
        found.append(_row(name, tflops, job, layout, lambda seconds, f=flops: f / seconds))
    return found


def llm_foundry(rows: Rows) -> list[Row]:
    """MosaicML's llm-foundry, FSDP on H100: tokens/s of a GPU.

    Its software: operators of eager PyTorch, attention in Triton, fused loss, gradients sent in
    float32.
    """
    data = rows["llm_foundry"]
    plain = dict.fromkeys(("norm_bias", "qkv_bias", "out_bias", "mlp_bias", "dropout"), False)
    return [
        _foundry_row(
            gpt(name, layers, h, heads, data["vocab"], **plain, positions=0),
            cluster_of("h100", gpus=gpus),
            s,
            b,
            accumulate,
            again,
            rate,
            title=f"{name}, {s} x {b}, {gpus} GPUs",
        )
        for name, layers, h, heads, s, gpus, b, accumulate, again, _, rate in data["rows"]
    ]


def mpt(rows: Rows) -> list[Row]:
    """More of the same table, on H100 and A100, models of 0.76e9 parameters and more: held out."""
    return _mpt(rows["mpt"])


def mpt_40(rows: Rows) -> list[Row]:
    """On A100 of 40 GB, on up to 128 of them: held out."""
    return _mpt(rows["mpt_40"])


def _mpt(data: Rows) -> list[Row]:
    return [
        _foundry_row(
            gpt(name, layers, h, heads, data["vocab"], dropout=False, positions=s),
            cluster_of(gpu, gpus=gpus),
            s,
            b,
            accumulate,
            again,
            rate,
            title=f"{name} {gpu}, {s} x {b}, {gpus} GPUs",
        )
        for name, gpu, s, gpus, b, accumulate, again, rate in data["rows"]
        for layers, h, heads in [data["models"][name]]
    ]


def _foundry_row(
    shape: ModelShape,
    cluster: Cluster,
    sequence: int,
    micro_batch: int,
    accumulate: int,
    recompute: bool,
    rate: float,
    *,
    title: str,
) -> Row:
    """A row of llm-foundry's tables, in tokens a second of one GPU."""
    gpus, tokens = cluster.gpus, micro_batch * accumulate * sequence
    job = Job(
        shape=shape,
        cluster=cluster,
        batch_tokens=gpus * tokens,
        sequence=sequence,
        states="fsdp",
        attention="flash1",
        kernels="eager",
        loss="fused",
    )
    again = "full" if recompute else "none"
    layout = Layout(data=gpus, micro_batch=micro_batch, stage=3, recompute=again)
    return _row(title, rate, job, layout, lambda seconds: tokens / seconds)


def qwen3(rows: Rows) -> list[Row]:
    """Qwen3-235B on 256 H100, four layouts, forced balance: seconds of a step."""
    found = []
    for name, t, e, p, v, b, recompute, _, seconds in rows["qwen3"]["rows"]:
        job = Job(
            shape=published_model("qwen3-235b-a22b"),
            cluster=cluster_of("h100", gpus=256),
            batch_tokens=2048 * 4096,
            sequence=4096,
            attention="flash3",
            states="bf16" if p == 1 else "bf16-float32-gradients",
        )
        layout = Layout(
            data=256 // (t * p),
            tensor=t,
            pipeline=p,
            chunks=v,
            expert=e,
            micro_batch=b,
            stage=3 if p == 1 else 1,
            recompute=recompute,
            schedule="interleaved" if v > 1 else "1f1b",
        )
        found.append(_row(name, seconds, job, layout, float))
    return found


def llama3(rows: Rows) -> list[Row]:
    """Llama 3 405B on H100: TFLOP/s of a GPU. One layer a chunk, embedding and output as one."""
    found = []
    for gpus, t, c, p, s, batch, tflops in rows["llama3"]["rows"]:
        job = Job(
            shape=published_model("llama-3-405b"),
            cluster=cluster_of("h100", gpus=gpus),
            batch_tokens=batch * s,
            sequence=s,
        )
        layout = Layout(
            data=gpus // (t * c * p),
            tensor=t,
            pipeline=p,
            chunks=8,
            context=c,
            stage=1,
            schedule="interleaved",
        )
        flops = model_flops(job) / gpus / 1e12
        name = f"{gpus} GPUs, context {c}"
        found.append(_row(name, tflops, job, layout, lambda seconds, f=flops: f / seconds))
    return found


def torchtitan(rows: Rows) -> list[Row]:
    """torchtitan, FSDP2 alone and with tensor parallelism: tokens/s of a GPU. Held out.

    Its software: fused attention of PyTorch, the loss in float32, gradients sent in float32;
    operators are fused where torch.compile is named. "half" computes every second product again,
    and all that is no product: halfway between "selective" and "full". Memory of the H100 and its
    bandwidth are as published; that it may take 500 W, and not 700, is not in the planner.
    """
    found = []
    eights = dict(memory=96 * 2**30, bandwidth=2.4e12)
    for name, gpu, s, gpus, t, b, again, compiled, hidden, rate, _ in rows["torchtitan"]["rows"]:
        data, each = gpus // t, b * s / t
        job = Job(
            shape=_llama(name),
            cluster=cluster_of(gpu, gpus=gpus, **(eights if gpu == "h100" else {})),
            batch_tokens=data * b * s,
            sequence=s,
            states="fsdp",
            kernels="fused" if compiled else "eager",
            overlap_tensor=hidden,
        )
        how = ", ".join([again] + ["compiled"] * compiled + ["async"] * hidden)
        title = f"{name} {gpu}, {gpus} GPUs, tensor {t}, {how}"
        names = ("selective", "full") if again == "half" else (again, again)
        two = [
            _row(
                title,
                rate,
                job,
                Layout(data=data, tensor=t, micro_batch=b, stage=3, recompute=recompute),
                lambda seconds, n=each: n / seconds,
            )
            for recompute in names
        ]
        seconds = sum(each / row.predicted for row in two) / 2
        memory = sum(row.memory for row in two) / 2
        found.append(replace(two[0], predicted=each / seconds, memory=memory))
    return found


def _llama(name: str) -> ModelShape:
    """As ``published_model``, with two more of Llama 2 (Touvron et al., 2023)."""
    if name == "llama-2-13b":
        sizes: dict[str, Any] = dict(layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824)
        return replace(published_model("llama-2-7b"), name=name, **sizes)
    if name == "llama-2-70b":
        return replace(published_model("llama-3-70b"), name=name, vocab=32000)
    return published_model(name)


SETS = {
    "sc21": sc21,
    "korthikanti": korthikanti,
    "megatron_core": megatron_core,
    "llm_foundry": llm_foundry,
    "mpt": mpt,
    "mpt_40": mpt_40,
    "qwen3": qwen3,
    "llama3": llama3,
    "torchtitan": torchtitan,
}
