"""``dlcourse explain``: a DeepSpeed JSON in words.

dlcourse explain ds.json --world 4
dlcourse explain ds.json --world 4 --code > cell.py
cat ds.json | dlcourse explain - --json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dlcourse.explain.explanation import explain
from dlcourse.words.strings import t


def run(args: argparse.Namespace) -> int:
    """Print the explanation. ValueError: what cannot be read, and why."""
    source = sys.stdin.buffer.read() if args.source == "-" else Path(args.source)
    explanation = explain(source, world_size=args.world, version=args.version)
    if args.json:
        print(json.dumps(explanation.to_dict(), ensure_ascii=False, default=str))
    elif args.code:
        if not explanation.code:
            raise ValueError(t("explain.hand.no_batch"))
        print(explanation.code, end="")
    else:
        print(explanation)
    return 0
