"""What the ranks of lessons 07 and 08 import, for ``Ranks(preload=)``: once for all of them."""

from __future__ import annotations

import dlcourse.peers.expert_parallel
import dlcourse.peers.moe  # noqa: F401
from dlcourse.peers.deepspeed_engine import import_for_ranks

import_for_ranks("deepspeed.moe.layer")
