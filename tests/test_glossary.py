"""One Korean word for one word of the field, in every Korean text of the course (glossary.toml)."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from dlcourse.course import catalog
from dlcourse.course.source import read_lesson

ROOT = catalog.own_root()
GLOSSARY = ROOT / "notebooks" / "source" / "glossary.toml"
KEYS = {"en", "ko", "not", "unless", "only", "except", "introduce", "write"}


@dataclass(frozen=True)
class Text:
    """A Korean text, where it is, and its place in the file."""

    file: str
    key: str
    text: str


def terms() -> list[dict[str, Any]]:
    return tomllib.loads(GLOSSARY.read_text(encoding="utf-8"))["terms"]


def korean_texts() -> list[Text]:
    """Every Korean text of the course."""
    found = []
    source = ROOT / "notebooks" / "source"
    template = ROOT / "dlcourse" / "course" / "template"
    for path in [*sorted(source.glob("*/lesson.py")), source / "index.py", template / "lesson.py"]:
        found += [
            Text(shown(path), str(block.lines["ko"]), block.text["ko"])
            for block in read_lesson(path).blocks
            if "ko" in block.text
        ]
    for path in sorted([*source.glob("*/**/*.toml"), *(ROOT / "dlcourse").glob("**/*.toml")]):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found += [Text(shown(path), key, text) for key, text in korean_values(content)]
    pages = [*ROOT.glob("*.ko.md"), ROOT / "hub/README.ko.md", ROOT / "cluster/README.ko.md"]
    found += [Text(shown(p), "", p.read_text(encoding="utf-8")) for p in pages]
    return found


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def korean_values(content: Any, key: str = "", korean: bool = False) -> Iterator[tuple[str, str]]:
    """The texts below a key ``ko``, with the way to them."""
    if isinstance(content, str):
        if korean:
            yield key, content
        return
    if isinstance(content, dict):
        items = [(str(name), value) for name, value in content.items()]
    elif isinstance(content, list):
        items = [(str(n), value) for n, value in enumerate(content)]
    else:
        return
    for name, value in items:
        yield from korean_values(value, f"{key}.{name}".lstrip("."), korean or name == "ko")


def applies(term: dict[str, Any], file: str) -> bool:
    only, out = term.get("only", ["*"]), term.get("except", [])
    return any(fnmatch(file, p) for p in only) and not any(fnmatch(file, p) for p in out)


def breaches(term: dict[str, Any], text: Text) -> list[str]:
    """What of a text is not written so: file, key, sentence, and what to write."""
    if not applies(term, text.file):
        return []
    flat = " ".join(re.sub(r"\s+", " ", text.text).split())
    spared = [m.span() for p in term.get("unless", []) for m in re.finditer(p, flat)]
    said = []
    for match in (m for p in term.get("not", []) for m in re.finditer(p, flat)):
        if any(first <= match.start() and match.end() <= last for first, last in spared):
            continue
        write = term.get("write", term["ko"])
        place = f"{text.file}:{text.key}".rstrip(":")
        said.append(f"{place}: {match[0]!r}, write {write} ({term['en']}): {sentence(flat, match)}")
    return said


def sentence(text: str, match: re.Match[str]) -> str:
    """The sentence around a match."""
    before = text[: match.start()]
    first = max(before.rfind(end) for end in (". ", "? ", "! ", "| ")) + 1
    last = re.search(r"[.?!](\s|$)", text[match.end() :])
    return text[first : match.end() + last.end() if last else None].strip()


def not_introduced(term: dict[str, Any], texts: list[Text]) -> list[str]:
    """Lessons whose first use of the word lacks the English."""
    said = []
    for file in dict.fromkeys(t.file for t in texts if t.file.endswith("/lesson.py")):
        uses = [t for t in texts if t.file == file and term["ko"] in t.text]
        if uses and applies(term, file):
            flat = re.sub(r"\s+", " ", uses[0].text)
            if not re.search(rf"^(?:(?!{term['ko']}).)*{term['ko']}\({term['en']}", flat):
                write = f"{term['ko']}({term['en']})"
                said.append(f"{file}:{uses[0].key}: the first {term['ko']}: write {write}")
    return said


def test_every_korean_text_keeps_to_the_glossary():
    texts = korean_texts()
    assert len(texts) > 1500 and len({text.file for text in texts}) > 100
    found = [said for term in terms() for text in texts for said in breaches(term, text)]
    for term in terms():
        if term.get("introduce"):
            found += not_introduced(term, texts)
    assert not found, "\n" + "\n".join(found)


def test_the_glossary_is_whole():
    for term in terms():
        assert term.keys() <= KEYS and {"en", "ko"} <= term.keys(), term
        assert "not" in term or term.get("introduce"), term
        own = Text("notebooks/source/index.py", "", term["ko"])
        assert not breaches(term, own), "what it wants is what it forbids"
        for pattern in [*term.get("only", []), *term.get("except", [])]:
            assert any(fnmatch(text.file, pattern) for text in korean_texts()), pattern


LESSON = "notebooks/source/05_pipeline_parallel/lesson.py"
WRONG = [
    (LESSON, "데이터가 고리를 돕니다.", "write 링"),
    (LESSON, "첫 단계가 기다립니다.", "단계는 ZeRO에만"),
    (LESSON, "텐서 병렬로 나눕니다.", "병렬화"),
    (LESSON, "잔차 흐름입니다.", "write 잔차 스트림"),
    (LESSON, "잔차가\n흐릅니다.", "write 잔차 스트림"),
    (LESSON, "작은 걸음입니다.", "write 갱신량, 학습률"),
    (LESSON, "체크포인트를 읽습니다.", "write 체크포인트 파일"),
    (LESSON, "2.3분의 1로 줄 뿐입니다.", "write 2.3배 줄어"),
    ("dlcourse/words/x.toml", "{ratio:.1f}분의 1입니다.", "write 2.3배 줄어"),
    ("notebooks/source/01_collectives/lesson.py", "세 단계를 거칩니다.", "write 라운드"),
    ("dlcourse/words/x.toml", "거절합니다.", "write 거부"),
    ("dlcourse/words/x.toml", "토큰의 사본입니다.", "write 복사본"),
    ("hub/README.ko.md", "노트북 사본입니다.", "write 복사본"),
    (LESSON, "파라미터를 업데이트합니다.", "write 갱신"),
    (LESSON, "그래디언트를 1.0에서 자른다.", "write 클리핑"),
    (LESSON, "누적, 자르기, 갱신 순서입니다.", "write 클리핑"),
    ("dlcourse/words/explain.toml", "0은 자르지 않습니다.", "write 클리핑"),
    (LESSON, "그래디언트의 크기(norm)입니다.", "write 노름"),
    (LESSON, "랭크를 배치합니다.", "write 구성"),
    (LESSON, "최대값과 머리글입니다.", "write 최댓값"),
    (LESSON, "메시지의 머리글입니다.", "write 헤더"),
    (LESSON, "정답 토큰입니다.", "write 타깃"),
    ("dlcourse/words/plan.toml", "가장 빠른 배치입니다.", "write 구성"),
]
RIGHT = [
    (LESSON, "알고리즘은 `hint`로 한 단계씩 봅니다. ZeRO 3단계입니다."),
    (LESSON, "체크포인트 파일과 활성화 체크포인트"),
    ("notebooks/source/06_zero/lesson.py", "모든 단계를 한눈에 봅니다."),
    ("notebooks/source/11_checkpointing/lesson.py", "체크포인트를 둡니다."),
    (LESSON, "메모리는 4분의 1입니다. 비용은 코스트입니다."),
    (LESSON, "행으로 자르기, 역전파를 둘로 자르기, 복사본의 배치"),
    ("dlcourse/words/plan.toml", "마이크로배치 (배치는 {batch:,}토큰)"),
]


@pytest.mark.parametrize(("file", "text", "write"), WRONG, ids=[w[1][:9] for w in WRONG])
def test_a_wrong_word_is_named_with_its_place_and_sentence(file, text, write):
    said = [one for term in terms() for one in breaches(term, Text(file, "7", f"좋습니다. {text}"))]
    assert any(s.startswith(f"{file}:7: ") and write in s for s in said), said
    assert all("좋습니다" not in s and s.endswith(" ".join(text.split())) for s in said)


@pytest.mark.parametrize(("file", "text"), RIGHT, ids=[r[1][:9] for r in RIGHT])
def test_another_meaning_is_no_breach(file, text):
    assert [one for term in terms() for one in breaches(term, Text(file, "7", text))] == []


def test_a_word_is_introduced_where_a_lesson_first_uses_it():
    ledger = next(term for term in terms() if term["en"] == "ledger")
    first, second = (
        Text(LESSON, "1", "메모리 장부로\n잽니다."),
        Text(LESSON, "2", "장부(ledger)입니다."),
    )
    assert not_introduced(ledger, [first, second]) == [
        f"{LESSON}:1: the first 장부: write 장부(ledger)"
    ]
    assert not_introduced(ledger, [second, first]) == []
