"""The command ``dlcourse``: build the lessons, run them headless, open them, show the claims."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from dlcourse import WINDOWS
from dlcourse.course import catalog, learner_copy, serve
from dlcourse.words import strings
from dlcourse.words.refusal import Refusal

USAGE_ERROR, FAILED, INTERRUPTED = 2, 1, 130
LANG_HELP = "ko or en (default: the system's language, else ko)"
BILINGUAL = ("plan", "scale", "explain")  # commands that refuse in the language they answer in
# What argparse says of their arguments, the narrowest first
_ARGPARSE = {
    "refusal.argument.none": r"argument (?P<name>\S+): expected one argument",
    "refusal.argument.int": r"argument (?P<name>\S+): invalid int value: (?P<value>.*)",
    "refusal.argument.required": r"the following arguments are required: (?P<names>.*)",
    "refusal.argument": r"argument (?P<name>\S+): (?P<why>.*)",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage: it says what is wrong and what is allowed."""
        if self.prog.rpartition(" ")[2] in BILINGUAL:
            found = ((key, re.fullmatch(said, message)) for key, said in _ARGPARSE.items())
            text = next((strings.t(k, **hit.groupdict()) for k, hit in found if hit), message)
            message = text
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status (2: bad input, 1: something failed)."""
    if sys.platform == "win32":
        print(f"dlcourse: {WINDOWS}", file=sys.stderr)
        return FAILED
    args, extra = parsed(sys.argv[1:] if argv is None else argv)
    if extra and args.command != "lab":
        lang = None if args.command in BILINGUAL else "en"
        text = strings.t("refusal.argument.unknown", lang, name=repr(extra[0]))
        print(f"dlcourse {args.command}: {text}", file=sys.stderr)
        return USAGE_ERROR
    args.extra = extra
    for stream in (sys.stdout, sys.stderr):  # a terminal without Korean letters is no error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        _check_current_folder()
        if hasattr(args, "lang"):
            args.lang = _language(args.lang)
        return args.run(args)
    except ValueError as error:
        said = error.said() if isinstance(error, Refusal) else str(error)
        print(f"dlcourse {args.command}: {said}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:  # a full disk, a file that may not be written
        lang = None if args.command in BILINGUAL else "en"
        said = strings.t("refusal.system", lang, why=error)
        print(f"dlcourse {args.command}: {said}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        # asyncio would report the cell that was cut off when its task is collected, at exit.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        print(f"dlcourse {args.command}: interrupted; nothing is left running", file=sys.stderr)
        return INTERRUPTED


def parsed(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and those that are unknown; what follows "--" is the command of a job."""
    given = list(argv)
    if given[:1] and given[0] in BILINGUAL:
        _speak(given)
    cut = given.index("--") if given[:1] == ["job"] and "--" in given else len(given)
    args, extra = _parser(plan=given[:1] == ["plan"]).parse_known_args(given[:cut])
    args.run_command = given[cut + 1 :]
    return args, extra


def _speak(given: Sequence[str]) -> None:
    """Take the language of --lang before the arguments are read, which may be refused."""
    values = [b for a, b in zip(given, [*given[1:], ""], strict=True) if a == "--lang"]
    values += [a.partition("=")[2] for a in given if a.startswith("--lang=")]
    if values and values[-1] in strings.LANGUAGES:
        strings.set_language(values[-1])


def _parser(*, plan: bool = False) -> _Parser:
    """plan: with the arguments of that command, whose modules are read for nobody else."""
    parser = _Parser(prog="dlcourse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    build = commands.add_parser("build", help="make the notebooks from their sources")
    build.add_argument("lessons", nargs="*", help="numbers or names; all by default")
    mode = build.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="write nothing; fail on any problem")
    mode.add_argument("--form", action="store_true", help="list how long each lesson's core is")
    mode.add_argument("--execute", action="store_true", help="renew the stored outputs, then build")
    mode.add_argument(
        "--accept",
        "--hash",
        action="store_true",
        help="mark the Korean text of these lessons as up to date, then build",
    )
    build.set_defaults(run=_build)

    run = commands.add_parser("run", help="run lessons without a browser")
    run.add_argument("lesson", nargs="?", help="number or name")
    run.add_argument("--all", action="store_true", help="run every lesson")
    run.add_argument("--lang", help=LANG_HELP)
    run.add_argument("--ranks", type=int, help="number of ranks (default: the lesson's)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    run.add_argument("--steps", type=int, help="training steps, where a lesson has them")
    run.add_argument("--out", default="results", help="folder for the results")
    run.add_argument("--no-progress", action="store_true", help="no progress bar")
    run.add_argument(
        "--resume",
        action="store_true",
        help="leave out lessons that have passed in --out, and note the others in progress.jsonl",
    )
    run.set_defaults(run=_run)

    job = commands.add_parser(
        "job",
        help="a machine's part in a run over several (for srun, torchrun, or by hand)",
        usage="dlcourse job FOLDER [--nodes N --node K] -- run LESSON --ranks N …",
    )
    job.add_argument("folder", help="shared by all machines, for this run alone")
    job.add_argument("--nodes", type=int, help="number of machines (default: what srun tells)")
    job.add_argument("--node", type=int, help="number of this one, from 0 (default: as told)")
    job.set_defaults(run=_job)

    submitted = commands.add_parser("submit", help="run a lesson as a Slurm job over machines")
    submitted.add_argument("lesson", nargs="?", help="number or name")
    submitted.add_argument("--all", action="store_true", help="run every lesson")
    submitted.add_argument("--lang", help=LANG_HELP)
    submitted.add_argument("--nodes", type=int, default=2, help="machines (default: 2)")
    submitted.add_argument("--ranks-per-node", type=int, default=4, help="default: 4")
    submitted.add_argument("--gpus-per-node", type=int, default=0, help="default: 0")
    submitted.add_argument("--device", default="auto", help="auto, cpu or cuda")
    submitted.add_argument("--steps", type=int, help="training steps, where a lesson has them")
    submitted.add_argument("--partition", help="of Slurm (default: the cluster's)")
    submitted.add_argument("--account", help="of Slurm (default: yours)")
    submitted.add_argument("--minutes", type=int, default=60, help="time limit (default: 60)")
    submitted.add_argument("--out", default="results", help="shared folder for the job's folder")
    submitted.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    submitted.set_defaults(run=_submit)

    graded = commands.add_parser("grade", help="a table of what submitted notebooks have passed")
    graded.add_argument("folder", metavar="DIR", help="the submissions, each a file")
    graded.add_argument("--out", default="grades.csv", help="default: grades.csv")
    graded.add_argument("--minutes", type=float, default=15, help="for a submission (default: 15)")
    graded.add_argument("--memory", type=float, default=4, help="GiB for one (default: 4)")
    graded.add_argument("--trust", action="store_true", help="run them without bubblewrap")
    graded.set_defaults(run=_grade)

    listed = commands.add_parser("lessons", help="list the lessons")
    listed.add_argument("--lang", help=LANG_HELP)
    listed.set_defaults(run=_lessons)

    new = commands.add_parser("new-lesson", help="make the folder of a new lesson")
    new.add_argument("name", help="two digits and words, as 16_my_lesson")
    new.set_defaults(run=_new_lesson)

    claims = commands.add_parser("claims", help="list the claims and their verdicts")
    claims.add_argument("--lang", help=LANG_HELP)
    claims.set_defaults(run=_claims)

    guesses = commands.add_parser("guesses", help="your predictions, and how far off they were")
    guesses.add_argument("--lang", help=LANG_HELP)
    guesses.add_argument("--json", action="store_true", help="print the record")
    guesses.set_defaults(run=_guesses)

    progress = commands.add_parser("progress", help="which exercises you have passed")
    progress.add_argument("--lang", help=LANG_HELP)
    progress.add_argument("--json", action="store_true", help="print it with your predictions")
    progress.set_defaults(run=_progress)

    bench = commands.add_parser("bench", help="measure the course's own speed and size")
    bench.add_argument(
        "names",
        nargs=argparse.REMAINDER,
        help="which measurements; all by default. After a single one, its own options: "
        "dlcourse bench experts --help",
    )
    bench.set_defaults(run=_bench)

    scale = commands.add_parser("scale", help="one rank of thousands, without their processes")
    scale.add_argument("lesson", help="whose parallelism: 03, 04, 05, 06 or 08")
    scale.add_argument("--model", default="7b", help="gpt2-large, 1.3b, 7b or 13b (default: 7b)")
    scale.add_argument("--world", type=int, default=1024, help="number of ranks (default: 1024)")
    for name, help in (
        ("tensor", "ranks that share each matrix"),
        ("pipeline", "stages"),
        ("stage", "of ZeRO: 0, 1, 2 or 3"),
        ("experts", "of each layer; 0: a dense model"),
        ("top-k", "experts that a token uses"),
        ("expert", "ranks that share the experts"),
        ("rank", "which rank to be"),
        ("micro-batch", "sequences of a micro-batch"),
        ("micro-batches", "micro-batches of a step"),
        ("block", "tokens of a sequence"),
    ):
        scale.add_argument(f"--{name}", type=int, help=help)
    scale.add_argument("--lang", help=LANG_HELP)
    scale.add_argument("--json", action="store_true", help="print the record")
    scale.set_defaults(run=_scale)

    planned = commands.add_parser("plan", help="how to spread a model's training over a cluster")
    if plan:
        from dlcourse.plan.command import add_arguments

        add_arguments(planned)
    planned.add_argument("--lang", help=LANG_HELP)
    planned.add_argument("--json", action="store_true", help="print the record")
    planned.set_defaults(run=_plan)

    explained = commands.add_parser("explain", help="what a DeepSpeed JSON says, key by key")
    explained.add_argument("source", help="a DeepSpeed JSON, or - for standard input")
    explained.add_argument("--world", type=int, help="ranks that share the batch")
    explained.add_argument("--version", help="of DeepSpeed (default: the installed one)")
    explained.add_argument("--code", action="store_true", help="print the code alone")
    explained.add_argument("--lang", help=LANG_HELP)
    explained.add_argument("--json", action="store_true", help="print the record")
    explained.set_defaults(run=_explain)

    lab = commands.add_parser("lab", help="open JupyterLab on the start page")
    lab.add_argument("--lang", help=LANG_HELP)
    lab.add_argument("--port", type=int, help="the first port to try (default: 8888)")
    lab.set_defaults(run=_lab)
    return parser


def _check_current_folder() -> None:
    """Nothing starts in a folder that is gone, and what then fails does not say why."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise ValueError("the folder that you are in has been removed: cd to another") from None


def _language(asked: str | None) -> str:
    """The language to answer in: the one asked for, else what the environment says."""
    if asked is not None:
        return catalog.check_language(asked)
    return strings.language()


def _build(args: argparse.Namespace) -> int:
    from dlcourse.course import build
    from dlcourse.course.source import accept_translations

    root = _course_root()
    if catalog.is_installed(root):
        raise ValueError("lessons are built in the course's repository, not where it is installed")
    names = [_lesson_or_index(text, root) for text in args.lessons] or None
    if args.check:
        problems = build.check(root, names)
        for problem in problems:
            print(problem)
        return FAILED if problems else 0
    if args.form:
        print(build.form_table(root, names))
        return 0
    if args.accept:
        if names is None:
            raise ValueError("--accept needs the lessons whose Korean text you have revised")
        for name in names:
            path = catalog.source_path(root, name)
            for line in accept_translations(path):
                print(f"accepted: {path.relative_to(root)}:{line}")
    if args.execute:
        for name in names or catalog.written_lessons(root):
            for lang in catalog.LANGUAGES:
                for path in build.execute(root, name, lang):
                    print(f"outputs renewed: {path.relative_to(root)}")
    written, problems = build.build(root, names)
    for path in written:
        print(f"written: {path.relative_to(root)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return FAILED if problems else 0


def _run(args: argparse.Namespace) -> int:
    from dlcourse.course import build, run

    root = _course_root()
    if args.all == bool(args.lesson):
        raise ValueError("give one lesson, or --all")
    names = catalog.written_lessons(root) if args.all else [catalog.find_lesson(args.lesson, root)]
    run.check_device(args.device)
    run.check_ranks(args.ranks)
    _check_lesson_options(args, names[0], root, ("ranks", "steps"))
    out = run.check_out(_folder("out", args.out), names, args.lang)
    for name in names:  # what is no notebook is said before the first one runs
        run.read_built(name, args.lang, root)
    failed = 0
    for name in names:
        if args.resume:
            if run.has_passed(name, args.lang, out):
                run.note_progress(out, name, "passed before")
                continue
            run.note_progress(out, name, "started")
        if not catalog.is_installed(root) and not build.is_current(root, name, args.lang):
            path = catalog.notebook_path(root, args.lang, name).relative_to(root)
            said = f"{path} is not what its source builds now: dlcourse build {name[:2]}"
            print(said, file=sys.stderr)
        result = run.run_lesson(
            name,
            lang=args.lang,
            ranks=args.ranks,
            device=args.device,
            steps=args.steps,
            out=out,
            root=root,
            progress=not args.no_progress,
        )
        if args.resume:
            run.note_progress(out, name, "passed" if result.passed else f"failed: {result.error}")
        if result.passed:
            print(f"{name} ({args.lang}): {result.wall_s:.1f} s, {result.notebook}")
        else:
            failed += 1
            print(f"{name} ({args.lang}): {result.error}", file=sys.stderr)
            print(f"the notebook up to there: {result.notebook}", file=sys.stderr)
    return FAILED if failed else 0


def _check_lesson_options(
    args: argparse.Namespace, name: str, root: Path, options: Sequence[str]
) -> None:
    """Refuse before anything starts, or waits in a queue, what would end the run."""
    from dlcourse.course import run

    if args.steps is not None and args.steps < 1:
        raise ValueError(f"steps={args.steps}: give a number from 1 on")
    if args.all:
        return
    declared = run.declared_parameters(run.read_built(name, args.lang, root))
    for option in options:
        parameter = "num_ranks" if option == "ranks" else option
        if getattr(args, option) is not None and parameter not in declared:
            raise ValueError(f"lesson {name} has no parameter for --{option}: leave it out")


def _folder(option: str, text: str) -> Path:
    """The path of a folder; "", of a shell variable that is not set, would be the current one."""
    if not text:
        raise ValueError(f"{option}='': give a folder (. is the current one)")
    return Path(text)


def _job(args: argparse.Namespace) -> int:
    from dlcourse.course.job import Job

    return Job(_folder("FOLDER", args.folder), args.run_command, args.node, args.nodes).run()


def _submit(args: argparse.Namespace) -> int:
    from dlcourse.course import run, submit

    root = _course_root()
    if args.all == bool(args.lesson):
        raise ValueError("give one lesson, or --all")
    name = "all" if args.all else catalog.find_lesson(args.lesson, root)
    out = _folder("out", args.out)
    for option, least in (
        ("nodes", 1),
        ("ranks_per_node", 1),
        ("minutes", 1),
        ("gpus_per_node", 0),
    ):
        if getattr(args, option) < least:
            raise ValueError(f"{option}={getattr(args, option)}: give a number from {least} on")
    if args.device not in (devices := ("auto", "cpu", "cuda")):  # this machine may have no GPU
        raise ValueError(f"device={args.device!r}: choose one of: {', '.join(devices)}")
    _check_lesson_options(args, name, root, ("steps",))
    ranks = args.nodes * args.ranks_per_node
    command = ["run", "--all" if args.all else name, "--lang", args.lang, "--ranks", str(ranks)]
    command += ["--device", args.device]
    command += [] if args.steps is None else ["--steps", str(args.steps)]
    wanted = submit.Wanted(
        args.nodes,
        args.ranks_per_node,
        args.gpus_per_node,
        args.partition,
        args.account,
        args.minutes,
    )
    job, folder = submit.submit(command, wanted, run.check_out(out), name)
    print(f"job {job}: {folder}", flush=True)
    if args.no_wait:
        return 0
    return submit.follow(job, folder, lambda line: print(line, flush=True))


def _grade(args: argparse.Namespace) -> int:
    from dlcourse.course.grading import grades
    from dlcourse.course.grading.sandbox import Limits

    for option in ("minutes", "memory"):
        if not 0 < getattr(args, option) <= 1_000_000:
            raise ValueError(
                f"{option}={getattr(args, option)}: give a number above 0, at most 1,000,000"
            )
    limits = Limits(60 * args.minutes, int(args.memory * 2**30))
    out = Path(args.out)
    rows = grades.grade(
        _folder("DIR", args.folder), out, limits, trust=args.trust, tell=grades.print_row
    )
    print(f"{out}: {len(rows)} submissions")
    return 0


def _lessons(args: argparse.Namespace) -> int:
    root = _course_root()
    written = catalog.written_lessons(root)
    for name in catalog.all_lessons(root):
        state = "" if name in written else f" ({strings.t('course.index.planned', args.lang)})"
        print(f"{name:<24}{catalog.title(root, name, args.lang)}{state}")
    return 0


def _new_lesson(args: argparse.Namespace) -> int:
    from dlcourse.course.new_lesson import new_lesson

    root = _course_root()
    for path in new_lesson(root, args.name):
        print(f"written: {path.relative_to(root)}")
    print(f"next: edit it, then run `dlcourse build {args.name[:2]}`")
    return 0


def _claims(args: argparse.Namespace) -> int:
    from dlcourse.course.claims import claims_table

    print(claims_table(_course_root(), args.lang))
    return 0


def _progress(args: argparse.Namespace) -> int:
    import json

    from dlcourse.course import guesses, progress
    from dlcourse.course.exercises.registry import exercise_ids
    from dlcourse.words.text_table import text_table

    passed = progress.read_passed()
    if args.json:
        kept = guesses.guesses_record(guesses.read_guesses())
        record = {"passed": passed, "guesses": kept}
        print(json.dumps(record, ensure_ascii=False, indent=1))
        return 0
    root = _course_root()
    titles = {
        name[:2]: catalog.title(root, name, args.lang) for name in catalog.written_lessons(root)
    }
    head = [strings.t(f"progress.{word}", args.lang) for word in ("lesson", "passed")]
    counted = progress.progress_rows(passed, exercise_ids())
    rows = [[f"{n} {titles.get(n, '')}", f"{good}/{total}"] for n, (good, total) in counted.items()]
    print(text_table(head, rows))
    return 0


def _guesses(args: argparse.Namespace) -> int:
    import json

    from dlcourse.course import guesses
    from dlcourse.words.text_table import text_table

    strings.set_language(args.lang)
    kept = guesses.read_guesses()
    if args.json:
        print(json.dumps(guesses.guesses_record(kept), ensure_ascii=False, indent=1))
    elif not kept:
        print(strings.t("guesses.none"))
    else:
        print(guesses.summary(kept))
        print(text_table(*guesses.guesses_rows(kept)))
    return 0


def _bench(args: argparse.Namespace) -> int:
    from dlcourse.bench import main as bench

    return bench(args.names)


def _scale(args: argparse.Namespace) -> int:
    import json

    from dlcourse.plan import scale
    from dlcourse.plan.scale_agreement import agreement

    strings.set_language(args.lang)
    lesson = args.lesson.zfill(2)
    names = [name for name in scale.LESSONS if lesson in (name, name[:2])]
    if not names:
        known = ", ".join(scale.LESSONS)
        raise Refusal("refusal.scale.lesson", lesson=repr(args.lesson), known=known)
    options = (
        *("tensor", "pipeline", "stage", "experts", "top_k", "expert"),
        *("rank", "micro_batch", "micro_batches", "block"),
    )
    given = {name: getattr(args, name) for name in options if getattr(args, name) is not None}
    scaled = scale.scale(names[0], model=args.model.lower(), world=args.world, **given)
    agreed = agreement(scaled)
    if args.json:
        said = [dict(vars(line), apart=line.apart) for line in agreed.lines]
        print(json.dumps(scaled.record | {"planner": said}))
    else:
        print(f"{scaled}\n\n{agreed}")
    return 0


def _plan(args: argparse.Namespace) -> int:
    from dlcourse.plan import command

    strings.set_language(args.lang)
    return command.run(args)


def _explain(args: argparse.Namespace) -> int:
    from dlcourse.explain import command

    strings.set_language(args.lang)
    return command.run(args)


def _lab(args: argparse.Namespace) -> int:
    root = _course_root()
    if importlib.util.find_spec("jupyterlab") is None:
        raise ValueError("JupyterLab is not installed: pip install jupyterlab")
    port = serve.free_port(serve.FIRST_PORT if args.port is None else args.port)
    if catalog.is_installed(root):
        root = _own_copy(root, args.lang)
    options = lab_arguments(root, args.lang, port)
    if serve.is_root():
        options.append("--allow-root")
        print(strings.t("lab.root", args.lang), file=sys.stderr)
    if not serve.has_browser():
        options.append("--no-browser")
    if "--no-browser" in (*options, *args.extra):
        told = strings.t("lab.no_browser", args.lang, ssh=serve.tunnel(port), port=port)
        print(told, file=sys.stderr)
    options = _unless_given(options, args.extra)
    command = [sys.executable, "-m", "jupyterlab", *options, *args.extra]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **serve.lab_environment(args.lang)})


def _own_copy(root: Path, lang: str) -> Path:
    """The lessons of an installed course in the current folder, which Lab then opens."""
    folder = Path.cwd()
    copied = learner_copy.copy_lessons(root, folder)
    if copied.new:
        print(strings.t("lab.copied", lang, n=len(copied.new), folder=folder / "notebooks"))
    for path in copied.kept:
        print(strings.t("lab.kept", lang, path=path))
    return folder


def lab_arguments(root: Path, lang: str, port: int = serve.FIRST_PORT) -> list[str]:
    """JupyterLab's options: the course's folder, opened on the start page, on this machine only."""
    page = f"/lab/tree/notebooks/{lang}/{catalog.INDEX}.md"
    return [
        f"--ServerApp.root_dir={root}",
        f"--LabApp.default_url={page}",
        f"--ServerApp.ip={serve.ADDRESS}",
        f"--ServerApp.port={port}",
    ]


def _unless_given(options: list[str], given: Sequence[str]) -> list[str]:
    """Without those that are given too, maybe by their short name: Jupyter refuses both."""
    names = {option.partition("=")[0] for option in given}
    return [
        option
        for option in options
        if names.isdisjoint({(name := option.partition("=")[0]), name.replace("ServerApp.", "")})
    ]


def _course_root() -> Path:
    """The course's folder; ValueError where it holds none, which would read as an empty course."""
    root = catalog.course_root()
    if not (root / "notebooks").is_dir():
        raise ValueError(f"{root} holds no course: set DLCOURSE_ROOT to the folder of `notebooks`")
    return root


def _lesson_or_index(text: str, root: Path) -> str:
    return text if text == catalog.INDEX else catalog.find_lesson(text, root)


if __name__ == "__main__":
    sys.exit(main())
