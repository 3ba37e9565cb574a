"""The claims file: whole, in both languages, and no verdict without the test that recomputes it."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest

from dlcourse.course import build, catalog
from dlcourse.course.claims import (
    claims_path,
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
    "00_start": "A1 A2 A3 A4",
    "01_collectives": "C1 C2 C3 C4 C5",
    "02_backends": "C6 C7",
    "03_data_parallel": "B1",
    "04_tensor_parallel": "B2",
    "05_pipeline_parallel": "B3",
    "06_zero": "B4 B5 B6 C2 C3",
    "07_moe": "A2",
    "08_expert_parallel": "C4 C7",
    "09_accumulation": "D1 E1",
    "10_mixed_precision": "D2 E2",
    "11_checkpointing": "D3 E3",
    "12_sharding_offload": "D4 E4",
    "13_memory_anatomy": "D5 D6 D7 D8 D9",
    "14_deepspeed_vs_mps": "E1 E2 E3 E4 E5 E6 E7",
    "15_choosing": "A3 A4 B7",
}
IDS = [f"{letter}{i}" for letter, last in zip("ABCDE", (4, 7, 7, 9, 7), strict=True)
       for i in range(1, last + 1)]  # fmt: skip


PROJECT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data():
    return json.loads(claims_path().read_text(encoding="utf-8"))


def test_every_claim_is_there_once_in_order_and_in_its_lessons():
    claims = load_claims()
    assert list(claims) == IDS
    for claim in claims.values():
        assert claim.lessons == [name for name, ids in PLAN.items() if claim.id in ids.split()]


@pytest.mark.parametrize("id", IDS)
def test_a_verdict_has_its_lesson_its_figures_and_its_test(id):
    assert verdict_problems(load_claims()[id], catalog.course_root()) == []


def good_verdict(claim):
    claim["verdict"] = "holds_when"
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


def test_a_full_verdict_fits_the_schema(data):
    changed = copy.deepcopy(data)
    good_verdict(changed["claims"][0])
    assert schema_problems(changed) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.pop("how"), "fields must be"),
        (lambda c: c.update(id="Z1"), "id must be"),
        (lambda c: c.update(lessons=["99_none"]), "unknown"),
        (lambda c: c.update(lessons=[]), "lessons is empty"),
        (lambda c: c.update(verdict="maybe"), "verdict must be"),
        (lambda c: c["statement"].pop("ko"), "both languages"),
        (lambda c: c["statement"].update(ko="English only"), "no Hangul"),
        (lambda c: c["statement"].update(en="한국어"), "Hangul in en"),
        (lambda c: c["how"].update(en=" "), "empty in en"),
        (lambda c: c.update(condition=None), "needs a condition"),
        (lambda c: c.update(verdict="not_tested_yet"), "cannot have"),
        (lambda c: c["figures"][0].pop("machine"), "needs machine"),
        (lambda c: c["figures"][0].update(kind="guessed"), "kind must be"),
        (lambda c: c["figures"][0].update(value="1.5"), "value must be a number"),
        (lambda c: c["figures"][0].update(date="20 Nov"), "date must be"),
        (lambda c: c["figures"][0].update(name="a ratio"), "identifier"),
        (lambda c: c["figures"][0].update(extra=1), "fields must be"),
    ],
)
def test_what_breaks_the_schema_is_named(data, spoil, said):
    changed = copy.deepcopy(data)
    good_verdict(changed["claims"][0])
    spoil(changed["claims"][0])
    assert any(said in problem for problem in schema_problems(changed)), schema_problems(changed)


def test_two_claims_with_one_id_are_named(data):
    changed = copy.deepcopy(data)
    changed["claims"].append(changed["claims"][3])
    assert schema_problems(changed) == ["A4: there are two of it"]


def test_a_verdict_without_lesson_figure_or_test_is_named(demo_root):
    path = claims_path(demo_root)
    data = json.loads(path.read_text(encoding="utf-8"))
    good_verdict(data["claims"][0])
    data["claims"][0] |= {"figures": [], "test": "tests/test_claims.py::test_not_there"}
    path.write_text(json.dumps(data), encoding="utf-8")
    said = " ".join(verdict_problems(load_claims(demo_root)["A1"], demo_root))
    assert "lessons is written" in said and "without a figure" in said and "no test" in said


def test_bad_files_and_unknown_claims_give_one_sentence(demo_root):
    with pytest.raises(ValueError, match=r"claim 'X9' is unknown; choose one of: A1, A2"):
        find_claim("X9", demo_root)
    claims_path(demo_root).write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        load_claims(demo_root)
    claims_path(demo_root).unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_claims(demo_root)


@pytest.mark.parametrize("lang", catalog.LANGUAGES)
def test_the_table_shows_every_claim(lang):
    table = claims_table(catalog.course_root(), lang)
    for claim in load_claims().values():
        assert claim.statement[lang] in table


def test_a_claim_to_be_tested_names_the_next_lesson(demo_root):
    claim = load_claims(demo_root)["A2"]
    assert next_lesson(claim, demo_root) == "00_start"
    source = catalog.source_path(demo_root, "00_start")
    source.parent.mkdir()
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
    demo = catalog.source_path(demo_root, "97_demo")
    demo.rename(demo.with_name("00_start.py"))
    index = catalog.source_path(demo_root, catalog.INDEX)
    shutil.copy(catalog.source_path(PROJECT, catalog.INDEX), index)
    build.build(demo_root, [])
    path = claims_path(demo_root)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["claims"][0]["statement"]["en"] = "Something else."
    path.write_text(json.dumps(data), encoding="utf-8")
    stale = [str(problem) for problem in build.check(demo_root)]
    assert any("en/claims.md" in problem and "dlcourse build" in problem for problem in stale)
