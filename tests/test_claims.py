"""The claims: whole, in both languages, and no verdict without the test that recomputes it."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from dlcourse.course import build, catalog
from dlcourse.course.claims import (
    claims_files,
    claims_table,
    find_claim,
    load_claims,
    next_lesson,
    quantity,
    schema_problems,
    verdict_problems,
)
from dlcourse.course.claims_page import claims_pages

# Which lesson tests which claim, as the course's plan has it.
PLAN = {
    "00_start": "A1",
    "01_collectives": "C1 C2 C3 C4 C5",
    "02_backends": "A4 C5 C6 C7",
    "03_data_parallel": "B1",
    "04_tensor_parallel": "B2",
    "05_pipeline_parallel": "B3",
    "06_zero": "B4 B5 B6 C2 C3",
    "07_moe": "A1 A2",
    "08_expert_parallel": "C4 C7",
    "09_accumulation": "D1 E1",
    "10_mixed_precision": "D2 E2",
    "11_checkpointing": "D3 E3",
    "12_sharding_offload": "D4 E4",
    "13_memory_anatomy": "D5 D6 D7 D8 D9",
    "14_deepspeed_vs_mps": "E1 E2 E3 E4 E5 E6 E7",
    "15_choosing": "A1 A2 A3 A4 B7",
}
IDS = [f"{letter}{i}" for letter, last in zip("ABCDE", (4, 7, 7, 9, 7), strict=True)
       for i in range(1, last + 1)]  # fmt: skip


PROJECT = Path(__file__).parents[1]


@pytest.fixture
def claims():
    """Of lesson 00, of which A1 is given a full verdict."""
    path = PROJECT / "notebooks" / "source" / "00_start" / "claims.toml"
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    good_verdict(found["A1"])
    return found


def test_every_claim_is_there_once_in_order_and_in_its_lessons():
    claims = load_claims()
    assert list(claims) == IDS
    for claim in claims.values():
        assert claim.lessons == [name for name, ids in PLAN.items() if claim.id in ids.split()]


def test_every_verdict_has_its_lesson_its_figures_and_its_test():
    """One test for all claims: it lists every one that lacks something."""
    claims = load_claims().values()
    assert [p for claim in claims for p in verdict_problems(claim, PROJECT)] == []


def good_verdict(claim):
    claim["verdict"] = "holds_when"
    claim["when"] = {"ko": "하나일 때", "en": "with one"}
    claim["condition"] = {"ko": "조건이 있습니다", "en": "there is a condition"}
    claim["figures"] = [
        {
            "name": "ratio",
            "label": {"ko": "비율", "en": "ratio"},
            "value": 1.5,
            "unit": "S",
            "kind": "measured",
            "machine": "2 cores",
            "date": "2025-11-20",
        }
    ]
    claim["test"] = (
        "tests/test_claims.py::test_every_claim_is_there_once_in_order_and_in_its_lessons"
    )


def test_a_full_verdict_fits_the_schema(claims):
    assert schema_problems(claims, "00_start") == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.pop("how"), "A1: must contain ['how'] properties"),
        (lambda c: c.update(extra=1), "A1: must not contain {'extra'} properties"),
        (lambda c: c.update(lessons=["00_start", "99_none"]), "A1: lessons: '99_none' is unknown"),
        (lambda c: c.update(lessons=["06_zero"]), "A1: lessons: the first is not 00_start"),
        (lambda c: c.update(lessons=[]), "A1: lessons: must contain at least 1 items"),
        (lambda c: c.update(verdict="maybe"), "A1: verdict: must be one of ['holds', "),
        (lambda c: c["statement"].pop("ko"), "A1: statement: must contain ['ko'] properties"),
        (lambda c: c["statement"].update(ko="Not so"), "A1: statement.ko: must be Korean text"),
        (lambda c: c["statement"].update(en="한국어"), "A1: statement.en: must be English text"),
        (lambda c: c["how"].update(en=" "), "A1: how.en: must be English text"),
        (lambda c: c.pop("when"), "A1: must contain ['when'] properties"),
        (lambda c: c.update(verdict="holds"), 'A1: only "holds_when" has a when'),
        (lambda c: c.pop("condition"), "A1: must contain ['condition'] properties"),
        (lambda c: c.update(verdict="not_tested_yet"), 'A1: "not_tested_yet" cannot have'),
        (lambda c: c.update(test="tests/x.py"), "A1: test: must be tests/file.py::test_name"),
        (lambda c: c["figures"][0].pop("machine"), "A1: figure ratio: must contain ['machine']"),
        (lambda c: c["figures"][0].update(kind="documented"), "A1: figure ratio: must contain"),
        (lambda c: c["figures"][0].update(kind="guessed"), "A1: figure ratio: kind: must be one"),
        (lambda c: c["figures"][0].update(value="1.5"), "A1: figure ratio: value: must be number"),
        (lambda c: c["figures"][0].update(date="20 Nov"), "A1: figure ratio: date: must be YYYY"),
        (lambda c: c["figures"][0].update(name="a ratio"), "A1: figure a ratio: name: must be an"),
        (lambda c: c["figures"][0]["label"].pop("en"), "A1: figure ratio: label: must contain"),
        (lambda c: c["figures"][0].update(extra=1), "A1: figure ratio: must not contain"),
    ],
)
def test_what_breaks_the_schema_is_named_with_claim_and_field(claims, spoil, said):
    spoil(claims["A1"])
    (problem,) = schema_problems(claims, "00_start")
    assert problem.startswith(said)


def test_an_id_is_a_letter_and_a_digit(claims):
    claims["Z1"] = claims.pop("A1")
    assert schema_problems(claims, "00_start") == ["Z1: an id must be a letter A-E and a digit"]


def spoil_file(root, name, old, new):
    """Change a room's claims, and return the file."""
    path = catalog.room(root, name) / "claims.toml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_every_problem_of_every_file_is_said_at_once(demo_root):
    one = spoil_file(demo_root, "02_backends", 'verdict = "does_not_hold"', 'verdict = "maybe"')
    two = spoil_file(demo_root, "06_zero", "[B5]", "[A4]")
    three = spoil_file(demo_root, "09_accumulation", "[D1]", "[D1")
    with pytest.raises(ValueError) as error:
        load_claims(demo_root)
    for said in (
        f"{one}: A4: verdict: must be one of",
        f"{three} is not TOML: ",
    ):
        assert said in str(error.value)
    spoil_file(demo_root, "02_backends", 'verdict = "maybe"', 'verdict = "does_not_hold"')
    with pytest.raises(ValueError, match="A4: there are two of it") as error:
        load_claims(demo_root)
    assert f"{two}: A4: there are two of it" in str(error.value)


def test_a_verdict_without_lesson_figure_or_test_is_named(demo_root):
    claim = replace(load_claims(demo_root)["A1"], figures=(), test="tests/test_claims.py::test_no")
    said = " ".join(verdict_problems(claim, demo_root))
    assert "lessons is written" in said and "without a figure" in said and "no test" in said


def test_unknown_claims_and_a_folder_without_any_give_one_sentence(demo_root):
    with pytest.raises(ValueError, match=r"claim 'X9' is unknown; choose one of: A1, A2"):
        find_claim("X9", demo_root)
    for path in claims_files(demo_root):
        path.unlink()
    with pytest.raises(ValueError, match=r"notebooks/source has no claims\.toml"):
        load_claims(demo_root)


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_the_table_shows_every_claim(lang):
    table = claims_table(catalog.course_root(), lang)
    for claim in load_claims().values():
        assert claim.statement[lang] in table


def test_a_claim_to_be_tested_names_the_next_lesson(demo_root):
    claim = load_claims(demo_root)["A1"]
    assert next_lesson(claim, demo_root) == "00_start"
    source = catalog.source_path(demo_root, "00_start")
    source.write_text("")
    assert next_lesson(claim, demo_root) == "07_moe"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (3491840, "bytes", "3.33 MiB (3,491,840 B)"),
        (512, "bytes", "512 B"),
        (0.00123, "s", "1.23 ms"),
        (71, "%", "71%"),
        (1.5, "S", "1.50 S"),
        ("four", "", "four"),
    ],
)
def test_quantities_read_well(value, unit, text):
    assert quantity(value, unit) == text


def test_the_page_has_every_claim_with_its_verdict_and_figures():
    root = catalog.course_root()
    pages = claims_pages(root)
    assert [path.parts[-2:] for path in pages] == [("ko", "claims.md"), ("en", "claims.md")]
    for (path, page), lang in zip(pages.items(), ("ko", "en"), strict=True):
        assert path.read_text(encoding="utf-8") == page, "run `dlcourse build`"
        for claim in load_claims(root).values():
            assert claim.statement[lang] in page
            known = claim.verdict != "not_tested_yet"
            assert (f"\n## {claim.id}\n" in page) == known
            if known:
                assert claim.test in page and all(f.label[lang] in page for f in claim.figures)
                assert claim.condition is None or claim.condition[lang] in page
    links = re.findall(r"\]\(([^)#]+)\)", "".join(pages.values()))
    missing = {link for link in links if not (root / "notebooks" / "ko" / link).exists()}
    assert len(links) > 20 and not missing


def test_a_claim_that_changes_makes_the_page_stale(demo_root):
    catalog.source_path(demo_root, "97_demo").unlink()
    index = catalog.source_path(demo_root, catalog.INDEX)
    shutil.copy(catalog.source_path(PROJECT, catalog.INDEX), index)
    build.build(demo_root, [])
    assert not any("claims.md" in str(problem) for problem in build.check(demo_root))
    english = load_claims(demo_root)["A1"].statement["en"]
    spoil_file(demo_root, "00_start", english, "Something else.")
    stale = [str(problem) for problem in build.check(demo_root)]
    assert any("en/claims.md" in problem and "dlcourse build" in problem for problem in stale)
