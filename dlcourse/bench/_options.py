"""The parser of a measurement's own options: its help is the module's docstring, line by line."""

from __future__ import annotations

import argparse


def parser_of(subject: str, doc: str | None) -> argparse.ArgumentParser:
    """Without options yet; the paragraphs and examples of ``doc`` stay as they are written."""
    return argparse.ArgumentParser(
        prog=f"dlcourse bench {subject}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
