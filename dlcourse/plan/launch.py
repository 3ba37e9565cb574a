"""Ready files to start a layout with: torchrun, Slurm, DeepSpeed's JSON, torchtitan's TOML.

    files(job, layout)["train.slurm"]

Not every library can do every layout. What one cannot is said in a comment of its file, or, for
DeepSpeed whose JSON has no comments, the file is left out and ``missing`` says why.

Keys: DeepSpeed 0.19's configuration models (``deepspeed.runtime.config``, ``zero.config``);
torchtitan 0.2's ``config/job_config.py``; Megatron-LM's ``megatron/training/arguments.py`` beside
Megatron-Core 0.16. Where a file starts something else than the planner has counted, it says so.
"""

from __future__ import annotations

import json
import re

from dlcourse.plan.job import SENT_BYTES, Job
from dlcourse.plan.layouts import Layout
from dlcourse.plan.model_shape import ModelShape

# Models that torchtitan 0.2 knows: its name and flavor
_TITAN = {
    "llama-3-8b": ("llama3", "8B"),
    "llama-3-70b": ("llama3", "70B"),
    "llama-3-405b": ("llama3", "405B"),
    "deepseek-v2-lite": ("deepseek_v3", "16B"),
    "deepseek-v3": ("deepseek_v3", "671B"),
}


def files(job: Job, layout: Layout) -> dict[str, str]:
    """Text of each file by its name."""
    made = {
        "torchrun.sh": torchrun(job, layout),
        "train.slurm": slurm(job, layout),
        "megatron.sh": megatron(job, layout),
        "torchtitan.toml": torchtitan(job, layout),
    }
    if not missing(layout):
        made["deepspeed.json"] = deepspeed(job, layout)
    return made


def missing(layout: Layout) -> str:
    """Why there is no DeepSpeed JSON for a layout; empty where there is one."""
    if layout.context > 1:
        return "context parallelism"
    if layout.chunks > 1:
        return "chunks of a pipeline"
    if layout.pipeline > 1:
        refused = ", and ZeRO 2 and 3 refuse it" if layout.stage > 1 else ""
        return f"pipeline stages: a PipelineModule in the training script makes them{refused}"
    if layout.expert > 1:
        return "expert ranks: deepspeed.moe.layer.MoE in the model makes them"
    return ""


def _node(job: Job) -> int:
    return min(job.cluster.node, job.cluster.gpus)


def torchrun(job: Job, layout: Layout, script: str = "train.py") -> str:
    """On each node; ``HEAD`` names the first one."""
    nodes, node = job.cluster.nodes, _node(job)
    if nodes == 1:
        return f"#!/bin/sh\ntorchrun --standalone --nproc-per-node={node} {script}\n"
    return (
        "#!/bin/sh\n"
        "# the same on every node; HEAD is the first node's name\n"
        f"torchrun --nnodes={nodes} --nproc-per-node={node} \\\n"
        '    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" --rdzv-id="$JOB" \\\n'
        f"    {script}\n"
    )


def slurm(job: Job, layout: Layout, script: str = "train.py") -> str:
    """A batch script: one torchrun a node."""
    nodes, node = job.cluster.nodes, _node(job)
    return (
        "#!/bin/bash\n"
        f"#SBATCH --job-name={re.sub(r'[^A-Za-z0-9._-]+', '-', job.shape.name) or 'train'}\n"
        f"#SBATCH --nodes={nodes}\n"
        "#SBATCH --ntasks-per-node=1\n"
        f"#SBATCH --gpus-per-node={node}\n"
        "#SBATCH --exclusive\n"
        "#SBATCH --output=%x-%j.out\n"
        "set -euo pipefail\n"
        f"# {describe(layout)}\n"
        'HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)\n'
        f"srun torchrun --nnodes={nodes} --nproc-per-node={node} \\\n"
        '    --rdzv-backend=c10d --rdzv-endpoint="$HEAD:29500" --rdzv-id="$SLURM_JOB_ID" \\\n'
        f"    {script}\n"
    )


def describe(layout: Layout) -> str:
    """A layout in the names of its parameters: what files and JSON say."""
    sides = {
        "data": layout.data,
        "tensor": layout.tensor,
        "pipeline": layout.pipeline,
        "context": layout.context,
        "expert": layout.expert,
    }
    text = " x ".join(f"{name} {n}" for name, n in sides.items() if n > 1 or name == "data")
    if layout.chunks > 1:
        text += f", {layout.chunks} chunks"
    text += f", ZeRO {layout.stage}, micro-batch {layout.micro_batch}"
    if layout.recompute != "none":
        text += f", recompute {layout.recompute}"
    return text + (", optimizer on the host" if layout.offload != "none" else "")


def deepspeed(job: Job, layout: Layout) -> str:
    """DeepSpeed's configuration. train_batch_size is micro-batch x accumulation x data ranks.

    With autotp_size DeepSpeed multiplies by the tensor ranks as well, which have the same
    sequences, and refuses a train_batch_size of data ranks: it is left out. Without ZeRO it sums
    gradients in the parameters' type only, so of float32 gradients nothing can be said there.
    """
    micro_batches = job.sequences // (layout.data * layout.micro_batch)
    config: dict[str, object] = {} if layout.tensor > 1 else {"train_batch_size": job.sequences}
    config |= {
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": 1.0,
    }
    if job.states != "float32":
        config["bf16"] = {"enabled": True}
        if SENT_BYTES[job.states][1] == 4 and layout.stage:
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    zero: dict[str, object] = {"stage": layout.stage}
    if layout.stage:
        zero |= {"overlap_comm": job.overlap_data, "contiguous_gradients": True}
    if layout.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config["zero_optimization"] = zero
    if layout.tensor > 1:
        config["tensor_parallel"] = {"autotp_size": layout.tensor}
    if layout.recompute == "full":  # the model has to call deepspeed.checkpointing.checkpoint
        config["activation_checkpointing"] = {"partition_activations": layout.tensor > 1}
    return json.dumps(config, indent=2) + "\n"


def torchtitan(job: Job, layout: Layout) -> str:
    """torchtitan's TOML; what it has no key for stands in comments."""
    said = ["for torchtitan 0.2"]
    if job.shape.name not in _TITAN:
        name = json.dumps(job.shape.name)
        said.append(f"torchtitan has no flavor of {name}: register its sizes first")
    if layout.stage in (1, 2):
        said.append("FSDP shards parameters too (ZeRO 3); reshard_after_forward=never is nearest")
    if layout.offload != "none":
        said.append("the optimizer goes to the host with FSDP's CPU offload only")
    if layout.stage == 0 and layout.expert > 1:
        said.append("experts go to ranks that shard (FSDP): all else is sharded over them too")
    elif layout.stage == 0 and layout.data > 1:
        said.append("data parallelism without sharding: data_parallel_replicate_degree")
    if layout.schedule == "zb-h1":
        said.append("there is no zb-h1 in torchtitan: 1F1B, which waits three times as long")
    if layout.recompute == "selective":
        said.append("selective: also every second matrix product is computed again, unlike planned")
    sharded = layout.stage > 0 or layout.expert > 1
    schedule = {"interleaved": "Interleaved1F1B", "gpipe": "GPipe", "zb-v": "ZBVZeroBubble"}
    lines = [f"# {describe(layout)}", *[f"# {text}" for text in said], "[model]"]
    model, flavor = _titan(job.shape.name)
    # What JSON quotes TOML reads: a name may be that of a folder
    lines += [f"name = {json.dumps(model)}", f"flavor = {json.dumps(flavor)}", "", "[training]"]
    lines += [f"local_batch_size = {max(1, job.sequences // layout.data)}"]
    if layout.pipeline == 1:
        lines[-1] = f"local_batch_size = {layout.micro_batch}"
    lines += [f"global_batch_size = {job.sequences}", f"seq_len = {job.sequence}", ""]
    lines += ["[parallelism]"]
    lines += [f"data_parallel_replicate_degree = {1 if sharded else layout.data}"]
    lines += [f"data_parallel_shard_degree = {layout.data if sharded else 1}"]
    if sharded:
        reshard = "default" if layout.stage == 3 else "never"
        lines += [f'fsdp_reshard_after_forward = "{reshard}"']
    lines += [f"tensor_parallel_degree = {layout.tensor}"]
    lines += [f"context_parallel_degree = {layout.context}"]
    lines += [f"expert_parallel_degree = {layout.expert}"] if layout.expert > 1 else []
    lines += [f"pipeline_parallel_degree = {layout.pipeline}"]
    if layout.pipeline > 1:
        name = schedule.get(layout.schedule, "1F1B")
        lines += [f'pipeline_parallel_schedule = "{name}"']
        lines += [f"pipeline_parallel_microbatch_size = {layout.micro_batch}"]
        each, first, last = _layers(job, layout)
        lines += [f"pipeline_parallel_layers_per_stage = {each}"]
        lines += [f"pipeline_parallel_first_stage_less_layers = {first}"]
        lines += [f"pipeline_parallel_last_stage_less_layers = {last}"]
    lines += ["", "[activation_checkpoint]"]
    lines += [f'mode = "{layout.recompute}"']
    lines += ['selective_ac_option = "op"'] if layout.recompute == "selective" else []
    return "\n".join(lines) + "\n"


def _titan(model: str) -> tuple[str, str]:
    kind = "llama3" if "llama" in model else model
    return _TITAN.get(model, (kind, model))


def _layers(job: Job, layout: Layout) -> tuple[int, int, int]:
    """Of a chunk, and how many fewer the first and the last one have; see ``stage_layers``."""
    layers, chunks = job.shape.layers, layout.pipeline * layout.chunks
    if layers % chunks and (layers + 2) % chunks == 0:
        return (layers + 2) // chunks, 1, 1
    each = -(-layers // chunks)
    return each, 0, each * chunks - layers


def megatron(job: Job, layout: Layout) -> str:
    """Arguments of Megatron-LM's pretrain_gpt.py; for other libraries a list of the same facts."""
    shape = job.shape
    arguments: dict[str, int | str] = {
        "num-layers": shape.layers,
        "hidden-size": shape.hidden,
        "ffn-hidden-size": shape.ffn,
        "num-attention-heads": shape.heads,
        "seq-length": job.sequence,
        "max-position-embeddings": max(shape.positions, job.sequence),
        "tensor-model-parallel-size": layout.tensor,
        "pipeline-model-parallel-size": layout.pipeline,
        "context-parallel-size": layout.context,
        "micro-batch-size": layout.micro_batch,
        "global-batch-size": job.sequences,
    }
    layers, flags = _megatron_layers(shape)
    arguments |= layers
    if job.states != "float32":
        flags.append("bf16")
        flags += ["grad-reduce-in-bf16"] if SENT_BYTES[job.states][1] == 2 else []
    if layout.tensor > 1 and job.sequence_parallel:
        flags.append("sequence-parallel")
    if layout.stage:
        flags += ["use-distributed-optimizer", "overlap-grad-reduce", "overlap-param-gather"]
    each, first, last = _layers(job, layout)
    if layout.chunks > 1:
        arguments["num-layers-per-virtual-pipeline-stage"] = each
    if layout.pipeline > 1 and first:
        flags += ["account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split"]
    elif layout.pipeline > 1 and last:
        arguments["decoder-last-pipeline-num-layers"] = each - last
    if shape.experts:
        arguments |= {"num-experts": shape.experts, "moe-router-topk": shape.top_k}
        arguments |= {"moe-ffn-hidden-size": shape.expert_ffn}
        arguments["expert-model-parallel-size"] = layout.expert
        arguments["expert-tensor-parallel-size"] = 1
        if shape.shared_ffn:
            arguments["moe-shared-expert-intermediate-size"] = shape.shared_ffn
        flags += ["moe-grouped-gemm"] if job.states != "float32" else []
        if shape.router_bias:
            arguments["moe-router-score-function"] = "sigmoid"
            flags.append("moe-router-enable-expert-bias")
    if layout.offload != "none":  # which Megatron takes together only
        flags += ["optimizer-cpu-offload", "use-precision-aware-optimizer"]
        flags += [] if layout.stage else ["use-distributed-optimizer"]
    said: list[str] = []
    if shape.experts and shape.moe_layers < shape.layers:
        said.append(f"{shape.moe_layers} of the layers have experts: say which by --moe-layer-freq")
    if shape.shared_gate:
        said.append("the gate of the shared expert is left out: this script has no flag for it")
    if layout.offload != "none" and not layout.stage:
        said.append("an optimizer on the host is divided over the data ranks too (ZeRO 1)")
    if layout.stage > 1:
        said.append("ZeRO 2 and 3 are Megatron-FSDP's, which has arguments of its own")
    if layout.schedule in ("gpipe", "zb-h1", "zb-v"):
        said.append(f"there is no {layout.schedule} in Megatron: 1F1B, or interleaved with chunks")
    text = [f"--{name} {value}" for name, value in arguments.items()]
    text += [f"--{name}" for name in flags]
    if layout.recompute == "full":
        text += ["--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"]
    elif layout.recompute == "selective":
        modules, more = _recomputed(job)
        said += more
        text += [f"--recompute-granularity selective --recompute-modules {modules}"]
    start = torchrun(job, layout, " \\\n    ".join(["pretrain_gpt.py", *text]))
    head, _, rest = start.partition("\n")
    comments = "".join(f"# {line}\n" for line in [describe(layout), *said])
    # Megatron stops without it where such ranks run on GPUs older than Blackwell
    one_queue = layout.tensor > 1 or layout.context > 1
    export = "export CUDA_DEVICE_MAX_CONNECTIONS=1\n" if one_queue else ""
    return f"{head}\n{comments}{export}{rest}"


def _megatron_layers(shape: ModelShape) -> tuple[dict[str, int | str], list[str]]:
    """What makes Megatron's layers the model's: its own are GPT-2's, with biases and LayerNorm."""
    arguments: dict[str, int | str] = {}
    flags: list[str] = []
    if shape.kv_heads != shape.heads:
        flags.append("group-query-attention")
        arguments["num-query-groups"] = shape.kv_heads
    if shape.kv_rank:
        flags += ["multi-latent-attention", "qk-layernorm"]
        arguments |= {"q-lora-rank": shape.q_rank} if shape.q_rank else {}
        arguments |= {"kv-lora-rank": shape.kv_rank, "v-head-dim": shape.value_dim}
        arguments["qk-head-dim"] = shape.head_dim - shape.rope_dim
        arguments["qk-pos-emb-head-dim"] = shape.rope_dim
    elif shape.head_dim * shape.heads != shape.hidden:
        arguments["kv-channels"] = shape.head_dim
    flags += ["swiglu"] if shape.gated else []
    flags += [] if shape.tied else ["untie-embeddings-and-output-weights"]
    flags += ["qk-layernorm"] if shape.qk_norm else []
    if not shape.mlp_bias:
        flags += ["disable-bias-linear", *["add-qkv-bias"] * shape.qkv_bias]
    arguments |= {} if shape.norm_bias else {"normalization": "RMSNorm"}
    arguments |= {} if shape.positions else {"position-embedding-type": "rope"}
    return arguments, flags


def _recomputed(job: Job) -> tuple[str, list[str]]:
    """Megatron's modules for selective recomputation, and what they do unlike the planner, which
    counts norms and activation functions (of unfused attention: its scores)."""
    if job.attention == "unfused":
        return "core_attn", []
    shape = job.shape
    dense = shape.moe_layers < shape.layers
    if not shape.moe_layers:
        modules = ["layernorm", "mlp"]
    else:
        modules = ["layernorm", "moe_act", *["mlp"] * dense]
        modules += ["shared_experts"] * bool(shape.shared_ffn)
    again = " and ".join(name for name in modules if name in ("mlp", "shared_experts"))
    if not again:
        return " ".join(modules), []
    said = f"{again}: matrix products are computed again too, so slower and smaller than planned"
    return " ".join(modules), [said]
