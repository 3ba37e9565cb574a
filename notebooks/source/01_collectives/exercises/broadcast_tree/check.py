"""Broadcast along a tree: log2(p) rounds."""

from __future__ import annotations

from typing import Any

from dlcourse.course.exercises import Finding, expect, expect_equal, measured

from ..common import expect_only_messages, expect_rounds, log2

NAMES = ("broadcast",)
CASES = ("values", "only", "rounds", "root")


def check(broadcast: Any, rank: int, world_size: int) -> list[Finding]:
    import torch

    with measured() as seen:
        got = broadcast(torch.arange(1000.0) + 7 * rank)
    sends = seen.calls("send")
    limit = log2(world_size)
    return [
        expect_equal("values", got, torch.arange(1000.0)),
        expect_only_messages("only", seen),
        expect_rounds("rounds", seen, limit),
        expect("root", rank > 0 or sends <= limit, "root", got=sends, limit=limit),
    ]
