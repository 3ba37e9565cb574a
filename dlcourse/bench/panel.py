"""What the live panel adds to the time of a training step.

In a real kernel, with the panel's widget and its messages: the same training cell with the panel
updated and not updated, in turn. Only the ratio means something elsewhere.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Sequence
from typing import Any

from dlcourse.bench._options import parser_of

TARGET = 1.03

SET_UP = """
from dlcourse import Ranks
ranks = Ranks({ranks})
ranks.cell('''
import time
from dlcourse.models.gpt import GPT
from dlcourse.measure import mark_step
from dlcourse.parallel.data import OverlappedDataParallel
model = OverlappedDataParallel(GPT())
optimizer = torch.optim.AdamW(model.parameters())
tokens = torch.randint(256, (4, 129))
def train(steps):
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        model.sync_gradients()
        optimizer.step()
        mark_step(tokens=512, loss=loss)
    return (time.perf_counter() - start) / steps
train(3)
''')
panel = ranks.observation.observer
assert panel is not None and panel.shown
"""

PAIR = """
found = []
for shown in ({order}):
    ranks.observation.observer = panel if shown else None
    ranks.cell("seconds = train({steps})", record={record})
    found.append((shown, max(ranks["seconds"])))
import json
print(json.dumps(found))
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the ratio; 0 where it meets the target, 1 where it does not."""
    parser = parser_of("panel", __doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20, help="steps of a cell")
    args = parser.parse_args(argv)
    from jupyter_client.manager import start_new_kernel

    from dlcourse.course.serve import kernel_settings

    options: dict[str, Any] = {"env": {**os.environ, "DLCOURSE_PANEL": "on"}, **kernel_settings()}
    manager, client = start_new_kernel(**options)
    printed: list[str] = []

    def note(message: dict) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])

    def run(code: str) -> None:
        reply = client.execute_interactive(code, output_hook=note, timeout=600)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))

    missed = 0
    try:
        run(SET_UP.format(ranks=args.ranks))
        for record, kind in ((False, "without the recorder"), (True, "recorded")):
            ratios = []
            for pair in range(args.pairs):
                order = "True, False" if pair % 2 else "False, True"
                printed.clear()
                run(PAIR.format(order=order, steps=args.steps, record=record))
                seconds = dict(json.loads(printed[-1]))
                ratios.append(seconds[True] / seconds[False])
            low, ratio, high = statistics.quantiles(ratios, n=4)
            print(
                f"panel: {ratio:.3f} times the step time {kind} "
                f"(half of the pairs {low:.3f} to {high:.3f}), target at most {TARGET}"
            )
            missed += ratio > TARGET
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
