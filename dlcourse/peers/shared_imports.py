"""What the ranks of lessons 07 and 08 import, for ``Ranks(..., preload=)``: once for all of them.

DeepSpeed is 40 MB a process. Where there are GPUs each rank imports it for itself: asking for them
here could start CUDA, and then ranks cannot be forked any more.
"""

from __future__ import annotations

import contextlib
import os

import torch

import dlcourse.peers.expert_parallel
import dlcourse.peers.moe  # noqa: F401
from dlcourse.peers.deepspeed_engine import is_installed

if is_installed() and not torch.cuda.is_available() and not torch.mps.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        import deepspeed.moe.layer  # noqa: F401
