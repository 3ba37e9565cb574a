"""``dlcourse plan``: its arguments, and what it does with them.

dlcourse plan --model llama-3-8b --gpus 64 --gpu h100 --tokens 15e12
dlcourse plan --model config.json --gpus 16 --gpu a100 --batch 1048576 --out plan/
dlcourse plan --model llama-3-405b --gpus 16384 --tokens 15.6e12 --mtbf-hours 6300
dlcourse plan --calibrate profile.json --gpus 4
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from math import inf
from pathlib import Path
from typing import Any

from dlcourse.plan.calibrate import calibrate, read_profile, store
from dlcourse.plan.cluster import cluster_of, gpu_types
from dlcourse.plan.hf_config import published_model, published_models
from dlcourse.plan.job import ATTENTION, KERNELS, STATE_BYTES, Job
from dlcourse.plan.launch import files, missing
from dlcourse.plan.layouts import Layout
from dlcourse.plan.plan_goodput import Failing
from dlcourse.plan.planner import Answer, judge, plan
from dlcourse.plan.report import layout_record, layout_report, record, report
from dlcourse.words.refusal import Refusal
from dlcourse.words.strings import t

MOST_TOKENS = 1e18  # of a training; the largest known have some 10**14
USUAL_BATCH = 4_194_304  # tokens of a step, or the nearest that the GPUs divide


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own; --lang and --json are the caller's."""
    models = ", ".join(published_models())
    parser.add_argument(
        "--model", default="llama-3-8b", help=f"a config.json, - for standard input, or {models}"
    )
    parser.add_argument("--gpu", default="h100", help=", ".join(gpu_types()))
    parser.add_argument("--gpus", type=_whole, default=8, help="in all nodes together (default: 8)")
    parser.add_argument("--node", type=_whole, help="GPUs of a node (default: the type's usual)")
    parser.add_argument("--tokens", type=_number, help="of the whole training, as 15e12")
    parser.add_argument(
        "--batch", type=_whole, help="tokens of a step (default: about 4.2 million)"
    )
    parser.add_argument("--sequence", type=_whole, default=4096, help="its tokens (default: 4096)")
    parser.add_argument("--states", default="bf16-float32-gradients", help=", ".join(STATE_BYTES))
    parser.add_argument("--attention", default="flash", help=", ".join(ATTENTION))
    parser.add_argument("--kernels", default="fused", help=", ".join(KERNELS))
    parser.add_argument("--memory", type=_number, help="bytes of a GPU, as 94e9")
    parser.add_argument("--network", type=_number, help="bytes/s of a GPU's network card, as 25e9")
    parser.add_argument("--links", type=_number, help="bytes/s from a GPU into its node, as 450e9")
    parser.add_argument("--host-memory", type=_number, help="bytes of a node, as 1e12")
    parser.add_argument("--out", help="folder for torchrun, Slurm, DeepSpeed, torchtitan files")
    parser.add_argument("--layout", help="judge this one, as data=8,tensor=8,micro_batch=2")
    parser.add_argument(
        "--mtbf-hours", type=_number, help="between failures of a node: adds goodput and real days"
    )
    for name, what, kind in (
        ("checkpoint-seconds", "to write a checkpoint (60)", _number),
        ("restart-minutes", "from a failure until training goes on (10)", _number),
        ("interval-minutes", "of work between checkpoints (the best)", _number),
        ("spares", "nodes beside the job's (always enough)", _whole),
        ("repair-hours", "until a failed node is back (24)", _number),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"with --mtbf-hours: {what}")
    parser.add_argument("--rows", type=_whole, default=5, help="of the fastest that are listed")
    parser.add_argument("--profile", help="a file that --calibrate has made, instead of --gpu")
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="measure this machine with --gpus ranks, and store the profile",
    )


def run(args: argparse.Namespace) -> int:
    """Answer, or measure. ValueError: what cannot be planned, and why."""
    if args.rows < 1:
        raise Refusal("refusal.rows", rows=args.rows)
    for name, path in (("out", args.out), ("calibrate", args.calibrate)):
        _check_place(name, path)
    if args.calibrate is not None:
        path = store(calibrate(ranks=args.gpus), args.calibrate)
        print(t("plan.profile", path=path))
        return 0
    job, failing = job_of(args), failing_of(args)
    if args.layout is not None:
        return _judge(args, judge(job, layout_of(args.layout)), failing)
    answer = plan(job)
    layout = answer.layouts[answer.simplest]
    if args.json:
        said = record(answer, tokens=args.tokens, failing=failing)
        said["files"] = files(job, layout)
        print(json.dumps(said, ensure_ascii=False, default=float))
    else:
        print(report(answer, tokens=args.tokens, rows=args.rows, failing=failing))
    if args.out is not None:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files(job, layout).items():
            (folder / name).write_text(text, encoding="utf-8")
            if not args.json:
                print(t("plan.written", path=folder / name))
        if not args.json and (why := missing(layout)):
            print(t("plan.none_file", file="deepspeed.json", why=why))
    return 0


def _check_place(name: str, path: str | None) -> None:
    """Refuse before anything is measured what could not be written afterwards."""
    if path is None:
        return
    if not path:  # of a shell variable that is not set; it would be the current folder
        raise Refusal("refusal.no_out" if name == "out" else "refusal.no_file", name=name)
    place = Path(path)
    if name == "out" and place.exists() and not place.is_dir():
        raise Refusal("refusal.out_file", path=repr(path))
    if name == "calibrate" and (place.is_dir() or not place.absolute().parent.is_dir()):
        raise Refusal("refusal.calibrate", path=repr(path))


def _judge(args: argparse.Namespace, answer: Answer, failing: Failing | None) -> int:
    if args.json:
        said = layout_record(answer, 0, tokens=args.tokens, failing=failing)
        print(json.dumps(said, ensure_ascii=False, default=float))
    else:
        print(layout_report(answer, tokens=args.tokens, failing=failing))
    return 0


def job_of(args: argparse.Namespace) -> Job:
    """The job that the arguments describe."""
    shape = published_model("/dev/stdin" if args.model == "-" else args.model)
    given = {
        "memory": args.memory,
        "network_bandwidth": args.network,
        "node_bandwidth": args.links,
        "host_memory": args.host_memory,
        "node": args.node,
    }
    own = {name: value for name, value in given.items() if value is not None}
    if args.tokens is not None and not args.tokens > 0:
        raise Refusal("refusal.tokens", tokens=args.tokens)
    if args.tokens is not None and args.tokens > MOST_TOKENS:
        value, most = f"{args.tokens:.3g}", f"{MOST_TOKENS:.0e}"
        raise Refusal("refusal.tokens.most", name="tokens", value=value, most=most)
    if args.profile is not None:
        cluster = read_profile(args.profile, gpus=args.gpus, **own)
    else:
        cluster = cluster_of(args.gpu, gpus=args.gpus, **own)
    if args.sequence < 1:
        raise Refusal("refusal.sequence", sequence=args.sequence)
    batch = args.batch
    if batch is None:
        each = cluster.gpus * args.sequence
        batch = max(1, round(USUAL_BATCH / each)) * each
    return Job(
        shape=shape,
        cluster=cluster,
        batch_tokens=batch,
        sequence=args.sequence,
        states=args.states,
        attention=args.attention,
        kernels=args.kernels,
    )


def failing_of(args: argparse.Namespace) -> Failing | None:
    """How the machines fail, where --mtbf-hours says so."""
    given = {field.name: getattr(args, field.name) for field in fields(Failing)}
    own = {name: value for name, value in given.items() if value is not None}
    if own and args.mtbf_hours is None:
        raise Refusal("refusal.no_mtbf", name=next(iter(own)))
    return Failing(**own) if own else None


def _whole(text: str) -> int:
    """A whole number, also as 4e6."""
    value = _number(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(t("refusal.no_whole", text=repr(text)))
    return int(text) if text.lstrip("-").isdecimal() else int(value)


def _number(text: str) -> float:
    """A finite number: no unit, no letter for thousands."""
    try:
        value = float(text)
    except ValueError:
        value = inf
    if not abs(value) < inf:
        raise argparse.ArgumentTypeError(t("refusal.no_number", text=repr(text)))
    return value


def layout_of(text: str) -> Layout:
    """A layout as the command line has it: "data=8,tensor=8,recompute=full".

    Raises:
        ValueError: an unknown name, or a value that is none of its own.
    """
    given: dict[str, Any] = {}
    kinds = {field.name: field.type for field in fields(Layout)}
    for part in text.split(","):
        name, _, value = (piece.strip() for piece in part.partition("="))
        if name not in kinds:
            raise Refusal("refusal.layout.name", name=repr(name), known=", ".join(kinds))
        if name in given:
            raise Refusal("refusal.layout.twice", name=name)
        if kinds[name] == "int" and not value.lstrip("-").isdecimal():
            raise Refusal("refusal.layout.whole", name=name, value=repr(value))
        given[name] = int(value) if kinds[name] == "int" else value
    if given.get("chunks", 1) > 1:
        given.setdefault("schedule", "interleaved")
    return Layout(**given)
