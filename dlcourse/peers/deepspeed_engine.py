"""DeepSpeed on the ranks that are already running, on any device. It is optional."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from copy import deepcopy
from importlib import import_module
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW

_LINEAR = F.linear  # torch's


def is_installed() -> bool:
    """Whether this environment has DeepSpeed."""
    return find_spec("deepspeed") is not None


def import_for_ranks(module: str) -> None:
    """Import a module of DeepSpeed in a process that ranks are forked from; 40 MB for them all.

    Nothing happens without DeepSpeed, nor where there are GPUs: asking for them here could start
    CUDA, and then ranks cannot be forked any more. There each rank imports it for itself.
    """
    if is_installed() and not torch.cuda.is_available() and not torch.mps.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            import_module(module)


def start(device: str) -> Any:
    """DeepSpeed itself, told to use ``device`` and the process group that exists."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it builds one: a minute
    # DeepSpeed calls collectives by the names they had before torch 2.13
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    deepspeed.init_distributed(dist_backend=dist.get_backend(), verbose=False)
    return deepspeed


def engine(model: nn.Module, config: dict[str, Any], *, lr: float) -> Any:
    """A DeepSpeed engine around ``model`` with torch's AdamW, float32 and no gradient clipping."""
    deepspeed = start(next(model.parameters()).device.type)
    common: dict[str, Any] = {
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,  # of 1.0: another training than everybody else's
        "steps_per_print": 10**9,
    }
    optimizer = AdamW(model.parameters(), lr=lr)
    with _as_light_as_it_goes():
        made, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=common | config)
    return _with_its_own_linear(made)


def configured(model: nn.Module, config: dict[str, Any]) -> Any:
    """A DeepSpeed engine as a configuration alone makes it, its optimizer and schedule too.

    Raises:
        Exception: whatever DeepSpeed has against the configuration, in every rank.
    """
    deepspeed = start(next(model.parameters()).device.type)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with _as_light_as_it_goes():
        made, *_ = deepspeed.initialize(
            model=model, model_parameters=parameters, config=deepcopy(config)
        )
    return _with_its_own_linear(made)


def _with_its_own_linear(made: Any) -> Any:
    """Let DeepSpeed's ``linear`` be there while its engine runs, and torch's at all other times.

    ZeRO-3 puts a ``torch.nn.functional.linear`` of its own in place for the whole process ("this
    will persist unless manually reset"). Another model's autocast would find it there: DeepSpeed's
    backward then multiplies float16 by float32, and fails.
    """
    its_own = F.linear
    if its_own is not _LINEAR:
        F.linear = _LINEAR

        def enter(*_: Any) -> None:
            F.linear = its_own

        def leave(*_: Any) -> None:
            F.linear = _LINEAR

        made.register_forward_pre_hook(enter)
        made.register_forward_hook(leave, always_call=True)
        backward = made.backward

        def backward_with_it(*arguments: Any, **options: Any) -> Any:
            with patch.object(F, "linear", its_own):  # a checkpointed block runs forward again
                return backward(*arguments, **options)

        made.backward = backward_with_it
    return made


@contextmanager
def _as_light_as_it_goes() -> Iterator[None]:
    """Without what DeepSpeed does beside, while it makes an engine."""
    # ZeRO-3 writes the numbers of every parameter into a message that it then does not print:
    # slow, and once in about thirty times torch's `unbind` fails in the middle of it.
    # It also decorates an optimizer that nobody here uses with `torch.compile`, which loads the
    # whole compiler into each rank: some 130 MB and seconds.
    with (
        patch.object(nn.Parameter, "__repr__", object.__repr__),
        patch.object(torch, "compile", _as_it_is),
    ):
        yield


def _as_it_is(function: Callable | None = None, **_: Any) -> Callable:
    return function or _as_it_is
