"""One thing that there is to say about a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# In the order in which they are shown: what stops a run first, what is merely so last
KINDS = ("contradictory", "unknown", "deprecated", "ignored", "implies", "does")


@dataclass(frozen=True)
class Finding:
    """One line of an explanation.

    kind:     one of ``KINDS``.
    path:     the key, such as "zero_optimization.stage"; "" for the configuration as a whole.
    value:    what the configuration gives, None where it gives nothing.
    default:  what DeepSpeed takes without it.
    text:     a sentence in the language that was asked for.
    refused:  DeepSpeed raises an error for it, so no training starts.
    """

    kind: str
    path: str
    value: Any
    default: Any
    text: str
    refused: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown: give one of {', '.join(KINDS)}")
