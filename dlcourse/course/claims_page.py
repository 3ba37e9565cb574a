"""The page of all claims, as Markdown: made from the rooms' ``claims.toml`` and nothing else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dlcourse.course import catalog
from dlcourse.course.claims import (
    VERDICTS,
    Claim,
    claims_files,
    load_claims,
    next_lesson,
    origin,
    quantity,
    verdict_text,
)
from dlcourse.words.strings import t
from dlcourse.words.text_table import markdown_table

NAME = "claims"
_MARKS = dict(zip(VERDICTS, "✓◐✗…", strict=True))  # shapes, so that no colour has to be seen


def claims_pages(root: Path) -> dict[Path, str]:
    """Path → text of the page in each language; none where there are no claims."""
    if not claims_files(root):
        return {}
    return {
        catalog.notebook_path(root, lang, NAME).with_suffix(".md"): claims_page(root, lang)
        for lang in catalog.LANGUAGES
    }


def claims_page(root: Path, lang: str) -> str:
    """How many claims hold; a row for each; then each with its figures and where they are from."""
    claims = load_claims(root).values()
    counts = Counter(claim.verdict for claim in claims)
    others = [other for other in catalog.LANGUAGES if other != lang]
    links = " · ".join(f"[{t('claim.page.language', o)}](../{o}/{NAME}.md)" for o in others)
    parts = [
        f"# {t('claim.page.title', lang)}",
        f"**{t('claim.page.language', lang)}** · {links} · "
        f"[{t('claim.page.start', lang)}]({catalog.INDEX}.md)",
        t("claim.page.intro", lang),
        "\n".join(f"- {_verdict(v, lang)}: {counts[v]}" for v in VERDICTS if counts[v]),
        _overview(list(claims), root, lang),
        *(_section(claim, root, lang) for claim in claims if claim.verdict != "not_tested_yet"),
    ]
    return "\n\n".join(parts) + "\n"


def _overview(claims: list[Claim], root: Path, lang: str) -> str:
    rows = []
    head = ["", *(t(f"claim.{key}", lang) for key in ("statement", "verdict", "lesson"))]
    for claim in claims:
        number = f"[{claim.id}](#{claim.id})" if claim.verdict != "not_tested_yet" else claim.id
        verdict = f"{_MARKS[claim.verdict]} {verdict_text(claim, lang)}"
        lessons = _lessons(claim, root, lang)
        rows.append([number, claim.statement[lang], verdict, lessons])
    return markdown_table(head, rows)


def _section(claim: Claim, root: Path, lang: str) -> str:
    parts = [f"## {claim.id}", f"> {claim.statement[lang]}"]
    parts.append(f"**{_MARKS[claim.verdict]} {verdict_text(claim, lang)}**")
    if claim.condition:
        parts.append(claim.condition[lang])
    rows = [
        [figure.label[lang], quantity(figure.value, figure.unit), origin(figure, lang)]
        for figure in claim.figures
    ]
    head = [t(f"claim.{key}", lang) for key in ("figure", "recorded", "origin")]
    parts.append(markdown_table(head, rows))
    parts.append(
        f"{t('claim.how', lang).capitalize()}: {claim.how[lang]} "
        f"({t('claim.lesson', lang)} {_lessons(claim, root, lang)}, `{claim.test}`)"
    )
    return "\n\n".join(parts)


def _lessons(claim: Claim, root: Path, lang: str) -> str:
    """Links to the written lessons that show it; where it has no verdict, the one that will."""
    written = [name for name in claim.lessons if name in catalog.written_lessons(root)]
    if claim.verdict == "not_tested_yet" or not written:
        name = next_lesson(claim, root)
        return f"{name[:2]} {catalog.title(root, name, lang)}"
    return ", ".join(
        f"[{name[:2]} {catalog.title(root, name, lang)}]({name}.ipynb)" for name in written
    )


def _verdict(verdict: str, lang: str) -> str:
    return f"{_MARKS[verdict]} {t(f'claim.verdict.{verdict}', lang)}"
