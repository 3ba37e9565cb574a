"""Memory of one process, times the number of them, beside what they take together."""

from __future__ import annotations

from typing import Any

from dlcourse.figures.charts import bars_figure
from dlcourse.words.strings import t


def process_memory_figure(one: int, together: int, num_ranks: int, lang: str | None = None) -> Any:
    """Bytes of ``num_ranks`` times one process, and of all processes together (plotly)."""
    labels = [t("process_memory.times", lang, ranks=num_ranks),
              t("process_memory.together", lang)]  # fmt: skip
    title = t("process_memory.title", lang, ranks=num_ranks, ratio=f"{together / one:.1f}")
    axis = t("process_memory.axis", lang)
    return bars_figure(
        labels, [num_ranks * one, together], axis=axis, title=title, unit="bytes", lang=lang
    )
