"""The optimizer and the schedule of a configuration as lines of code.

DeepSpeed's Adam does not decay by default, torch's AdamW by 0.01; its "Adam" is AdamW unless
``adam_w_mode`` is false. All of it is written out, so that the code does not depend on defaults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlcourse.explain.keys import Keys
from dlcourse.explain.settings import Settings, is_on, number
from dlcourse.words.strings import t

# Of torch, element by element: a flat shard of parameters gets the numbers of whole ones
_TORCH = ("SGD", "Adagrad", "RMSprop", "Adadelta", "Adamax", "NAdam", "RAdam")
_MASTER = "dlcourse.training.mixed_precision.master_adamw"
_FORMULAS = "from dlcourse.formulas.learning_rate import"


@dataclass
class Lines:
    """Parts of the code. ``lr``: the optimizer's learning rate, before any schedule."""

    imports: list[str] = field(default_factory=list)
    setting_up: list[str] = field(default_factory=list)
    step: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    lr: float = 1e-3


def optimizer_code(settings: Settings, keys: Keys) -> Lines:
    """What makes the optimizer, and where it is not ``optimizer.step()``, what takes its step."""
    made = Lines()
    name, arguments = _class(settings, made)
    parameters = "model.shards" if settings.stage else "model.parameters()"
    offload = settings.stage and settings.offload("optimizer") != "none"
    if not offload and not settings.bf16:
        made.setting_up = [f"optimizer = torch.optim.{name}({parameters}, {arguments})"]
        return made
    if not offload and name == "AdamW":
        made.imports = [f"from {_MASTER} import MasterAdamW"]
        made.setting_up = [f"optimizer = MasterAdamW({parameters}, {arguments})"]
        return made
    where = '"cpu"' if offload else "device"
    why = "offload_optimizer" if offload else "bf16: float32 masters"
    made.setting_up = [
        f"trained = list({parameters})",
        "masters = [  # " + why,
        f"    p.detach().to({where}, torch.float32, copy=True).requires_grad_() for p in trained",
        "]",
        f"optimizer = torch.optim.{name}(masters, {arguments})",
    ]
    made.step = [
        "for p, master in zip(trained, masters, strict=True):",
        "    master.grad = None if p.grad is None else p.grad.to(master)",
        "    p.grad = None",
        "optimizer.step()",
        "with torch.no_grad():",
        "    for p, master in zip(trained, masters, strict=True):",
        "        p.copy_(master)",
    ]
    if settings.fp16:  # the scaler looks at the optimizer's gradients, which are the masters'
        made.missing.append(t("explain.hand.fp16_offload"))
        made.setting_up = [f"optimizer = torch.optim.{name}({parameters}, {arguments})"]
        made.step = []
    return made


def _class(settings: Settings, made: Lines) -> tuple[str, str]:
    """The class in torch.optim, and its arguments as code."""
    params = settings.block("optimizer.params")
    lr = number(params.get("lr", 1e-3))
    made.lr = 1e-3 if lr is None or lr < 0 else lr
    kind = settings.block("optimizer").get("type")
    if not isinstance(kind, str):
        made.missing.append(t("explain.hand.no_optimizer"))
        return "AdamW", f"lr={made.lr!r}, weight_decay=0.0"
    if kind.lower() in ("adam", "adamw"):
        decays = kind.lower() == "adamw" or params.get("adam_w_mode", True) is not False
        return ("AdamW" if decays else "Adam"), _adam(params, made)
    if kind.lower() == "adagrad":
        kind = "Adagrad"
    if kind in _TORCH:
        numbers = {n: v for n, v in params.items() if isinstance(v, int | float | bool)}
        given = {"lr": made.lr, **numbers}
        if all(name.isidentifier() for name in given):
            return kind, ", ".join(f"{name}={value!r}" for name, value in given.items())
    made.missing.append(t("explain.hand.optimizer", kind=repr(kind[:40])))
    return "AdamW", _adam(params, made)


def _adam(params: dict[str, Any], made: Lines) -> str:
    decay = number(params.get("weight_decay", 0.01 if is_on(params.get("torch_adam")) else 0.0))
    betas = params.get("betas")
    pair = [number(beta) for beta in betas] if isinstance(betas, list) else []
    if len(pair) != 2 or any(beta is None or not 0 <= beta < 1 for beta in pair):
        pair = [0.9, 0.999]
    eps = number(params.get("eps", 1e-8))
    eps = 1e-8 if eps is None or eps < 0 else eps
    return f"lr={made.lr!r}, betas={tuple(pair)!r}, eps={eps!r}, weight_decay={decay or 0.0!r}"


def schedule_code(settings: Settings, keys: Keys, *, lr: float) -> Lines:
    """What sets the learning rate before each step."""
    block = settings.block("scheduler")
    kind = block.get("type")
    if kind is None:
        return Lines()
    name = kind if isinstance(kind, str) else repr(kind)
    given = {**keys.schedulers.get(name, {}), **settings.block("scheduler.params")}
    take = _Arguments(given)
    if name in ("WarmupLR", "WarmupDecayLR"):
        function = "warmup_lr"
        highest = take("warmup_max_lr")
        arguments = {
            "min_lr": take("warmup_min_lr", 0.0),
            "max_lr": lr if highest is None else highest,
            "warmup_steps": take("warmup_num_steps", 1000, whole=True),
            "shape": take.text("warmup_type", "log"),
        }
        if name == "WarmupDecayLR":
            arguments["total_steps"] = take("total_num_steps", whole=True)
    elif name == "WarmupCosineLR":
        function = "warmup_cosine_lr"
        arguments = {
            "lr": lr,
            "total_steps": take("total_num_steps", whole=True),
            "warmup_steps": take("warmup_num_steps", 1000, whole=True),
            "min_ratio": take("warmup_min_ratio", 0.0),
            "cos_min_ratio": take("cos_min_ratio", 0.0001),
            "shape": take.text("warmup_type", "log"),
        }
    elif name == "LRRangeTest":
        function = "range_test_lr"
        arguments = {
            "min_lr": take("lr_range_test_min_lr", 1e-3),
            "step_size": take("lr_range_test_step_size", 2000, whole=True),
            "step_rate": take("lr_range_test_step_rate", 1.0),
            "staircase": is_on(given.get("lr_range_test_staircase")),
        }
    else:
        return Lines(missing=[t("explain.hand.scheduler", kind=repr(name[:40]))])
    needed = [value for key, value in arguments.items() if key != "min_lr"]
    if None in needed or take.wrong:
        return Lines(missing=[t("explain.hand.schedule_number", kind=name)])
    text = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return Lines(
        imports=[f"{_FORMULAS} {function}"],
        step=[
            "for group in optimizer.param_groups:",
            f'    group["lr"] = {function}(step, {text})',
        ],
    )


class _Arguments:
    """Numbers of a schedule. ``wrong``: one of them was something else."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given, self.wrong = given, False

    def __call__(self, name: str, default: Any = None, *, whole: bool = False) -> Any:
        value = self.given.get(name)
        if value is None:
            return default
        found = number(value)
        if found is None or (whole and (found != int(found) or found < 1)):
            self.wrong = True
            return default
        return int(found) if whole else found

    def text(self, name: str, default: str) -> str:
        value = self.given.get(name)
        return value if value in ("log", "linear") else default
