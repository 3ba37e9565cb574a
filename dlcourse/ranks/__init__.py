"""Start ranks and talk to them: real processes, one process group, driven from a notebook."""

from dlcourse.ranks.failure import RankError, RanksInterrupted, expect_failure
from dlcourse.ranks.pool import Ranks, default_pool

__all__ = ["RankError", "Ranks", "RanksInterrupted", "default_pool", "expect_failure"]
