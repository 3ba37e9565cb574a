"""A refusal in both languages: English for Python and its callers, the reader's for a command.

raise Refusal("refusal.gpu", gpu="tpu", known="a100, h100")

The sentences are in ``refusal.toml``, both languages side by side.
"""

from __future__ import annotations

from typing import Any

from dlcourse.words.strings import t


class Refusal(ValueError):
    """What was given cannot be done; ``str()`` of it is English, ``said`` the language in use.

    Args:
        key: of its words, as for ``t``.
        fmt: a value for each of their fields. One that is a Refusal itself is in the same language.
    """

    def __init__(self, key: str, **fmt: Any) -> None:
        self.key, self.fmt = key, fmt
        super().__init__(self.said("en"))

    def said(self, lang: str | None = None) -> str:
        """The sentence in ``lang``, "ko" or "en"; None is the language in use."""
        values = {name: said(value, lang) for name, value in self.fmt.items()}
        return t(self.key, lang, **values)

    def __reduce__(self) -> tuple[Any, ...]:
        """Ranks pickle what they raise: by its key, which is not what ``args`` holds."""
        return _again, (type(self), self.key, self.fmt)


def said(value: Any, lang: str | None = None) -> Any:
    """The words of a refusal in a language; anything else as it is."""
    return value.said(lang) if isinstance(value, Refusal) else value


def _again(kind: type[Refusal], key: str, fmt: dict[str, Any]) -> Refusal:
    return kind(key, **fmt)
