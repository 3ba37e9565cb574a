"""The words are complete in both languages and all used; colours stay apart for every reader."""

from __future__ import annotations

import math
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest
from word_usage import Usage, matches, usage, usage_of

from dlcourse import Ranks, lesson
from dlcourse.course import catalog
from dlcourse.figures import colors
from dlcourse.words import strings, units
from dlcourse.words.strings import area_of, read_words
from dlcourse.words.text_table import markdown_table, text_table

PACKAGE = Path(strings.__file__).parents[1]
ROOT = PACKAGE.parent
OWN = {  # the words of each lesson, written or not
    path.parent.name: path
    for path in sorted((ROOT / "notebooks" / "source").glob("[0-9][0-9]_*/words.toml"))
}
FILES = [*sorted((PACKAGE / "words").glob("*.toml")), *OWN.values()]
ROOM_KEYS = ("title", "question")  # what the tools show of a lesson


@pytest.fixture(autouse=True)
def restore_language(monkeypatch):
    monkeypatch.delenv("DLCOURSE_LANG", raising=False)
    monkeypatch.setattr(strings, "_chosen", None)


def fields(words: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(words) if field is not None}


def text_problems(words: dict[str, str]) -> list[str]:
    """What is wrong with a text in its two languages."""
    korean, english = words["ko"], words["en"]
    prose = re.sub(r"\{[^}]*\}", "", english)
    return [
        problem
        for problem, found in {
            "a text is empty": not korean.strip() or not english.strip(),
            "fields differ": fields(korean) != fields(english),
            "a field has no name": "" in fields(korean) | fields(english),
            "Hangul in English": bool(re.search("[가-힣]", english)),
            "no Hangul, and not the same as the English": korean.strip() != ""
            and not re.search("[가-힣]", korean)
            and re.search("[a-z]{3}", prose) is not None
            and korean != english,
        }.items()
        if found
    ]


def file_problems(path: Path) -> list[str]:
    """What is wrong with a file of words."""
    heads = re.findall(r"^\[(.+)\]$", path.read_text(encoding="utf-8"), re.M)
    problems = [] if heads == sorted(heads) else ["keys are not in alphabetical order"]
    return problems + [
        f"[{name}]: {problem}"
        for name, words in read_words(path).items()
        for problem in text_problems(words)
    ]


def test_every_text_is_there_in_both_languages_with_the_same_fields():
    """One test for all texts of all files: it lists every one that is wrong."""
    assert sum(len(read_words(path)) for path in FILES) > 600
    said = [f"{path.relative_to(ROOT)}: {p}" for path in FILES for p in file_problems(path)]
    assert said == []


def test_every_lesson_has_a_title_and_a_question():
    lacking = [
        f"{name}: {key}"
        for name in catalog.all_lessons(ROOT)
        for key in ROOM_KEYS
        if key not in read_words(catalog.words_path(ROOT, name))
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[a]\nko = "가"\nen = "word"', []),
        ('[a]\nko = "ZeRO"\nen = "ZeRO"', []),
        ('[a]\nko = ""\nen = "word"', ["[a]: a text is empty"]),
        ('[a.b]\nko = "{x} 가"\nen = "word"', ["[a.b]: fields differ"]),
        ('[a]\nko = "가 {}"\nen = "word {}"', ["[a]: a field has no name"]),
        ('[a]\nko = "가"\nen = "나"', ["[a]: Hangul in English"]),
        (
            '[a]\nko = "wort"\nen = "word"',
            ["[a]: no Hangul, and not the same as the English"],
        ),
        (
            '[b]\nko = "가"\nen = "word"\n[a]\nko = "가"\nen = "word"',
            ["keys are not in alphabetical order"],
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(text, said, tmp_path):
    path = tmp_path / "area.toml"
    path.write_text(text, encoding="utf-8")
    assert file_problems(path) == said


def keys_of(path: Path) -> set[str]:
    return {f"{area_of(path)}.{name}" for name in read_words(path)}


def uses() -> dict[Path, Usage]:
    """What each Python file of the package and of each lesson's room asks for."""
    rooms = [catalog.room(ROOT, name) for name in catalog.written_lessons(ROOT)]
    lessons = [path for room in rooms for path in sorted(room.glob("*.py"))]
    package = [p for p in sorted(PACKAGE.rglob("*.py")) if "template" not in p.parts]
    found = {path: usage(path) for path in [*package, *lessons]}
    for path in lessons:
        found[path].complete(path.parent.name.partition("_")[2])
    return found


def asked_for(found: dict[Path, Usage], keys: set[str]) -> dict[Path, set[str]]:
    """The keys that each file asks for; only texts that it can have may fill an f-string's gap."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in found
        if path.is_relative_to(PACKAGE)
    }
    package = set().union(*(found[path].texts for path in modules.values()))
    for path in [ROOT / "data" / "libraries.json", *PACKAGE.rglob("*.json")]:
        package |= set(re.findall(r'"(\w+)"', path.read_text(encoding="utf-8")))
    return {
        path: one.keys(
            keys,
            package
            if path.is_relative_to(PACKAGE)
            else one.texts.union(*(found[modules[m]].texts for m in one.imports & set(modules))),
        )
        for path, one in found.items()
    }


def plain(pattern: str) -> str:
    return pattern.replace("\\", "")


def usage_problems(found: dict[Path, Usage], keys: dict[Path, set[str]]) -> list[str]:
    """Keys that are used and missing, unused, or in the wrong file. keys: of each file of words."""
    known = set().union(*keys.values())
    anything = set().union(*(one.texts for one in found.values()))
    problems = [
        f"{path.name} asks for {key!r}, which is in no file"
        for path, one in found.items()
        for key in sorted(one.literals - known)
    ]
    problems += [
        f"{path.name} asks for {plain(pattern)}, which no key fits"
        for path, one in found.items()
        for pattern in sorted(one.patterns)
        if not matches(pattern, known, anything)
    ]
    asked = asked_for(found, known)
    for file, its_keys in keys.items():
        room = file.parent if file in OWN.values() else None
        for key in sorted(its_keys):
            users = [path for path, wanted in asked.items() if key in wanted]
            lessons = [path for path in users if not path.is_relative_to(PACKAGE)]
            if room and key.partition(".")[2] in ROOM_KEYS:
                continue
            if not users:
                problems.append(f"{file.name}: nobody uses {key!r}")
            elif room and {path.parent for path in users} != {room}:
                problems.append(f"{key!r} is used outside its lesson: move it to dlcourse/words")
            elif key.startswith("explore."):
                continue  # of a slider, which every lesson has under its own name in one place
            elif not room and users == lessons and len({path.parent for path in users}) == 1:
                problems.append(f"only {users[0].parent.name} uses {key!r}: move it there")
    return problems


@pytest.fixture(scope="module")
def found() -> dict[Path, Usage]:
    return uses()


@pytest.fixture(scope="module")
def keys() -> dict[Path, set[str]]:
    return {path: keys_of(path) for path in FILES}


def test_every_key_is_used_and_every_key_that_is_used_is_there(found, keys):
    assert sum(len(one.literals) for one in found.values()) > 300
    assert sum(len(one.patterns) for one in found.values()) > 30
    assert usage_problems(found, keys) == []


def test_a_key_that_goes_or_comes_is_named(found, keys):
    """Keys of a literal, of an f-string that is followed, and of one that is a pattern."""
    panel, lesson = PACKAGE / "words" / "panel.toml", OWN["10_mixed_precision"]
    for file, key in [(panel, "panel.title"), (lesson, "mixed_precision.reason.lost")]:
        without = keys | {file: keys[file] - {key}}
        assert [p for p in usage_problems(found, without) if key in p and "in no file" in p]
    gone = keys | {panel: {key for key in keys[panel] if not key.startswith("panel.say.")}}
    assert any("panel.say.(.*), which no key fits" in p for p in usage_problems(found, gone))
    for file, key in [
        (panel, "panel.unheard_of"),
        (panel, "panel.say.nothing_at_all"),
        (lesson, "mixed_precision.kept.by_nobody"),
        (OWN["02_backends"], "backends.anything"),
    ]:
        more = keys | {file: keys[file] | {key}}
        assert usage_problems(found, more) == [f"{file.name}: nobody uses {key!r}"]


def test_a_word_in_the_wrong_file_is_named(found, keys):
    panel, lesson = PACKAGE / "words" / "panel.toml", OWN["10_mixed_precision"]
    moved = keys | {
        lesson: keys[lesson] - {"mixed_precision.reason.lost"},
        panel: keys[panel] | {"mixed_precision.reason.lost"},
    }
    assert usage_problems(found, moved) == [
        "only 10_mixed_precision uses 'mixed_precision.reason.lost': move it there"
    ]
    moved = keys | {panel: keys[panel] - {"panel.loss"}, lesson: keys[lesson] | {"panel.loss"}}
    assert usage_problems(found, moved) == [
        "'panel.loss' is used outside its lesson: move it to dlcourse/words"
    ]


@pytest.mark.parametrize(
    ("code", "literals", "patterns"),
    [
        ('t("a.b")', {"a.b"}, set()),
        ('strings.t("a.b", lang)', {"a.b"}, set()),
        ('raise Refusal("a.b", x=1)', {"a.b"}, set()),
        ('x.t("a.b")', set(), set()),
        ('t("a.b" if x else "a.c")', {"a.b", "a.c"}, set()),
        ('[t(f"a.{k}") for k in ("b", "c")]', {"a.b", "a.c"}, set()),
        ('ks = ["b"]\n[t(f"a.{k}") for k in (*ks, "c")]', {"a.b", "a.c"}, set()),
        ('for k in ("", ".b"):\n    x[t(f"a{k}")] = 1', {"a", "a.b"}, set()),
        ("t(f\"a.{'b' if x else 'c'}\")", {"a.b", "a.c"}, set()),
        ('[t(f"a.{k}") for k in found]', set(), {"a\\.(.*)"}),
        ('def f(k):\n    t(f"a.{k}.c")', set(), {"a\\.(.*)\\.c"}),
        ('k = "b"\ndef f(k):\n    t(f"a.{k}")', set(), {"a\\.(.*)"}),
        ('for k in ("b",):\n    pass\n[t(f"a.{k}") for k in g()]', set(), {"a\\.(.*)"}),
    ],
)
def test_how_keys_are_read_from_code(code, literals, patterns):
    found = usage_of(code)
    assert (found.literals, found.patterns) == (literals, patterns)


@pytest.mark.parametrize(
    ("variables", "lang"),
    [
        ({}, "ko"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "en"}, "en"),
        ({"LANG": "EN-GB"}, "en"),
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LANG": "C.UTF-8"}, "ko"),
        ({"LANG": "POSIX"}, "ko"),
        ({"LANG": "fr_FR.UTF-8"}, "ko"),
        ({"LANG": "english?"}, "ko"),
        ({"LANG": "ko_KR", "LC_MESSAGES": "en_US"}, "en"),
        ({"LANG": "en_US", "LC_ALL": "ko_KR", "LC_MESSAGES": "en_US"}, "ko"),
        ({"LANG": "en_US", "LC_ALL": "", "LC_MESSAGES": ""}, "en"),
        ({"LANG": "en_US", "DLCOURSE_LANG": "ko"}, "ko"),
        ({"LANG": "ko_KR", "DLCOURSE_LANG": "en"}, "en"),
    ],
)
def test_without_a_word_the_language_is_that_of_the_system(variables, lang, monkeypatch):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert strings.language() == lang


def test_words_in_both_languages_and_the_language_in_use(monkeypatch):
    assert strings.language() == "ko"
    assert strings.t("panel.state.running") == "실행 중"
    assert strings.t("panel.state.running", "en") == "running"
    monkeypatch.setenv("DLCOURSE_LANG", "en")
    assert strings.t("panel.title", size=4) == "4 ranks"
    strings.set_language("ko")
    assert strings.t("panel.title", size=4) == "랭크 4개"


def test_bad_language_key_and_field_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"lang='fr'.*Korean.*English"):
        strings.set_language("fr")
    with pytest.raises(ValueError, match="lang='fr'"):
        strings.t("panel.state.running", "fr")
    with pytest.raises(ValueError, match=r"panel\.state\.running"):
        strings.t("panel.state.runing")
    with pytest.raises(ValueError, match="size"):
        strings.t("panel.title")
    monkeypatch.setenv("DLCOURSE_LANG", "de")
    with pytest.raises(ValueError, match="DLCOURSE_LANG='de'"):
        strings.language()


def test_a_lesson_has_words_of_its_own(monkeypatch):
    monkeypatch.delenv("DLCOURSE_WORDS", raising=False)
    with pytest.raises(
        ValueError, match=r"'\.reason\.lost' is one of a lesson's own: call lesson\(name"
    ):
        strings.t(".reason.lost")
    with pytest.raises(
        ValueError, match=r"mixed_precision\.reason\.lost' is not in .*precision\.toml"
    ):
        strings.t("mixed_precision.reason.lost", "en")
    monkeypatch.setenv("DLCOURSE_WORDS", "")  # for monkeypatch to put back what is set now
    strings.set_lesson_words(OWN["10_mixed_precision"])
    assert strings.t(".reason.lost", "en") == strings.t("mixed_precision.reason.lost", "en")
    assert "0.996" in strings.t(".reason.lost", "en")
    assert strings.t("panel.loss", "en") == "loss"
    with pytest.raises(
        ValueError, match=r"10_mixed_precision/words.toml; did you mean .*reason.lost"
    ):
        strings.t(".reason.lots")
    strings.set_lesson_words(OWN["11_checkpointing"])
    assert strings.t(".axis.peak", "en", unit="GB") == "peak of activations (GB)", "of the package"
    assert "36/k" in strings.t(".reason.k", "en"), "of the lesson"


def test_a_lesson_that_is_started_and_its_ranks_have_its_words(monkeypatch):
    monkeypatch.setenv("DLCOURSE_WORDS", "")
    monkeypatch.setenv("DLCOURSE_LANG", "")
    lesson(lang="en", name="10_mixed_precision")
    assert "0.996" in strings.t(".reason.lost")
    with Ranks(1, device="cpu", default=False) as ranks:
        assert ranks.run(strings.t, ".reason.lost") == [strings.t(".reason.lost")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\nko = ", r"words\.toml is not TOML: "),
        ('[a]\nko = "가"', r"words\.toml: \[a\] needs two texts"),
        ('[a]\nko = "가"\nen = 1', r"words\.toml: \[a\] needs two texts"),
        ('[a]\nko = "가"\nen = "x"\nfr = "x"', r"words\.toml: \[a\] needs two texts"),
        ('[a.b]\nko = "가"\nen = "x"\n[a.b]', r"words\.toml is not TOML: "),
    ],
)
def test_a_file_that_is_not_right_is_named(text, said, tmp_path, monkeypatch):
    path = tmp_path / "98_wrong" / "words.toml"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("DLCOURSE_WORDS", str(path))
    with pytest.raises(ValueError, match=said):
        strings.t(".a")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1,000 B"),
        (4096, "4 KiB"),
        (3491840, "3.33 MiB"),
        (16 * 2**20, "16 MiB"),
        (1023 * 2**20, "0.999 GiB"),
        (7.5 * 2**40, "7.50 TiB"),
    ],
)
def test_bytes_as_people_read_them(count, text):
    assert units.human_bytes(count) == text


def test_seconds_counts_and_ranks_as_people_read_them():
    assert [units.human_seconds(s) for s in (0, 2e-6, 0.00123, 0.5, 12.34, 120)] == [
        "0 s",
        "2 µs",
        "1.23 ms",
        "500 ms",
        "12.3 s",
        "120 s",
    ]
    assert [units.human_count(n) for n in (5, 9_999, 872_960, 6.7e9)] == [
        "5",
        "9,999",
        "873 k",
        "6.70 G",
    ]
    for write in (units.digits, units.human_bytes, units.human_seconds, units.human_count):
        assert [write(x) for x in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]
    assert units.rank_ranges([3, 0, 1, 2, 6]) == "0-3, 6"


def test_columns_line_up_in_both_languages():
    table = text_table(["이름", "n"], [["올리듀스\n(링)", "12"], ["ring", "3"], ["cafe\u0301", ""]])
    assert table.split("\n") == [
        "이름       n",
        "--------  --",
        "올리듀스  12",
        "(링)",
        "ring       3",
        "cafe\u0301",
    ]
    assert text_table(["a", "b"], [["long", "x"]], [True, False]).split("\n")[0] == "   a  b"
    assert markdown_table(["", "b"], [["x|y", "2"]]) == "|  | b |\n| --- | --- |\n| x\\|y | 2 |"


# What a reader with a colour vision deficiency sees: G. M. Machado et al., "A physiologically-based
# model for simulation of color vision deficiency" (2009), severity 1, on linear RGB.
VISION = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}


def linear(color: str) -> list[float]:
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def times(matrix, vector) -> list[float]:
    return [sum(m * v for m, v in zip(row, vector, strict=True)) for row in matrix]


def oklab(rgb: list[float]) -> list[float]:
    cone = times(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        [min(1.0, max(0.0, c)) for c in rgb],
    )
    return times(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        [c ** (1 / 3) for c in cone],
    )


def nearest_pair(palette, vision) -> float:
    seen = [oklab(times(VISION[vision], linear(color))) for color in palette]
    return min(
        sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
        for i, first in enumerate(seen)
        for second in seen[:i]
    )


PALETTES = {
    "categories": list(colors.CATEGORIES.values()),
    "spans": list(colors.SPANS.values()),
    "states": list(colors.STATES.values()),
    "ranks": list(colors.RANKS),
}


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("name", PALETTES)
def test_any_two_colours_of_a_palette_stay_apart(name, vision):
    # 0.11 in Oklab: five times what the eye just tells apart; plain Okabe-Ito reaches 0.076.
    assert nearest_pair(PALETTES[name], vision) > 0.11


def test_the_distance_test_can_fail():
    red_and_green = ["#b05a00", "#5f7d00"]
    assert nearest_pair(red_and_green, "normal") > 0.11
    assert nearest_pair(red_and_green, "deuteranopia") < 0.11


@pytest.mark.parametrize("name", [*PALETTES, "ink"])
def test_colours_stand_out_on_white_and_on_the_dark_theme(name):
    palette, least = ([colors.INK], 4.2) if name == "ink" else (PALETTES[name], 2.0)
    for color in palette:
        luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear(color), strict=True))
        assert 1.05 / (luminance + 0.05) > least, f"{color} on white"
        assert (luminance + 0.05) / (0.0056 + 0.05) > least, f"{color} on #111111"


def test_words_and_colours_need_no_heavy_import():
    code = (
        "import sys, dlcourse.words.strings, dlcourse.figures.colors, dlcourse.words.units\n"
        "print([m for m in ('torch', 'numpy', 'plotly', 'IPython', 'ipywidgets', 'anywidget')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
