"""All that there is to say about a configuration, and how it is shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dlcourse.explain.by_hand import by_hand
from dlcourse.explain.conflicts import conflicts
from dlcourse.explain.finding import KINDS, Finding
from dlcourse.explain.implied import implied
from dlcourse.explain.keys import Keys, keys_of
from dlcourse.explain.page import Page
from dlcourse.explain.settings import Settings
from dlcourse.explain.source import read
from dlcourse.explain.walk import walk
from dlcourse.peers.deepspeed_installed import Installed, look
from dlcourse.words.strings import t


@dataclass(frozen=True, repr=False)
class Explanation(Page):
    """What ``explain`` has found. Shows itself: a table in a notebook, text in a terminal.

    findings:   what is wrong first, then what follows, then what each key does.
    code:       the same training in this course's code, a cell for ``%%ranks``.
    missing:    in words, what the configuration asks for and ``code`` does not do.
    version:    of the DeepSpeed whose keys these are.
    source:     "installed", or "recorded" where DeepSpeed is not installed or another is named.
    world_size: the number of ranks that was given, or None.
    """

    findings: list[Finding]
    code: str
    missing: list[str]
    version: str
    source: str
    world_size: int | None
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data, for JSON."""
        return {
            "version": self.version,
            "source": self.source,
            "world_size": self.world_size,
            "refused": self.refused,
            "notes": list(self.notes),
            "findings": [asdict(finding) for finding in self.findings],
            "missing": list(self.missing),
            "code": self.code,
        }


def explain(
    source: Any, *, world_size: int | None = None, version: str | None = None
) -> Explanation:
    """Explain a DeepSpeed configuration in the language in use.

    Args:
        source: a path, pasted JSON, or a dict.
        world_size: ranks that share the batch, as DeepSpeed counts them (tensor ranks too, pipeline
            stages not); None says which numbers would work.
        version: of DeepSpeed, such as "0.16.9"; None is the installed one, else the newest that
            is recorded.

    Raises:
        ValueError: malformed JSON (with line and column), a file that cannot be read, a world size
            or a version that is none.
    """
    if world_size is not None and (type(world_size) is not int or world_size < 1):
        raise ValueError(t("explain.bad.world", world=repr(world_size)))
    read_source = read(source)
    config = read_source.config
    here, said = look(config if world_size else None, world_size=world_size or 1)
    keys = keys_of(version, (here.version, here.table) if here and not here.broken else None)
    settings = Settings(config, world_size)
    found = [
        Finding("contradictory", path, None, None, t("explain.twice"), refused=True)
        for path in read_source.twice
    ]
    found += [*conflicts(settings, keys), *walk(config, keys), *implied(settings, keys)]
    if keys.installed and said and said.error and not any(one.refused for one in found):
        text = t("explain.verdict", version=keys.version, error=said.error)
        found.append(Finding("contradictory", "", None, None, text, refused=True))
    order = {kind: n for n, kind in enumerate(KINDS)}
    found.sort(key=lambda finding: order[finding.kind])
    made = by_hand(settings, keys, refused=any(one.refused for one in found))
    return Explanation(
        findings=found,
        code=made.code,
        missing=made.missing,
        version=keys.version,
        source="installed" if keys.installed else "recorded",
        world_size=world_size,
        notes=_notes(keys, here),
    )


def _notes(keys: Keys, here: Installed | None) -> list[str]:
    """Where the keys come from."""
    if keys.installed:
        notes = [t("explain.from.installed", version=keys.version)]
    elif here is None:
        notes = [t("explain.from.recorded", version=keys.version)]
    elif here.broken:
        notes = [t("explain.from.broken", version=keys.version, why=here.broken)]
    else:
        notes = [t("explain.from.other", version=keys.version, here=here.version)]
    if keys.asked_for:
        notes.append(t("explain.from.nearest", asked=keys.asked_for, version=keys.version))
    return notes
