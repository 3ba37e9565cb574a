"""What the ranks of lessons 05 and 06 share, for ``Ranks(preload=)``: imported once for them all.

FSDP2, torch's pipelines and DeepSpeed are 20 to 40 MB and a second or two of each process; the
corpus is 4 MB, and stays in its module's cache.
"""

from __future__ import annotations

import dlcourse.peers.pipeline_parallel
import dlcourse.peers.zero  # noqa: F401
from dlcourse.corpus import Corpus
from dlcourse.peers.deepspeed_engine import import_for_ranks

Corpus()
import_for_ranks("deepspeed")
