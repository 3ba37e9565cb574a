"""The table of words is complete in both languages; colours stay apart for every reader."""

from __future__ import annotations

import pathlib
import re
import string
import subprocess
import sys

import pytest

from dlcourse.figures import colors
from dlcourse.words import strings, units
from dlcourse.words.table import AREAS, WORDS


def fields(words: str) -> set[str]:
    return {field for _, field, _, _ in string.Formatter().parse(words) if field is not None}


@pytest.fixture(autouse=True)
def restore_language(monkeypatch):
    monkeypatch.delenv("DLCOURSE_LANG", raising=False)
    monkeypatch.setattr(strings, "_chosen", None)


@pytest.mark.parametrize("key", sorted(WORDS))
def test_every_key_has_both_languages_with_the_same_fields(key):
    korean, english = WORDS[key]
    assert korean.strip() and english.strip()
    assert fields(korean) == fields(english)
    assert "" not in fields(korean), "name the fields: t() fills them in by name"


@pytest.mark.parametrize("area", sorted(AREAS))
def test_areas_are_sorted(area):
    keys = list(AREAS[area])
    assert keys == sorted(keys)


def test_every_key_that_the_code_asks_for_exists():
    """Literal keys in the package's own calls of t("...")."""
    package = pathlib.Path(strings.__file__).parent.parent
    asked = {
        (path.name, key)
        for path in package.rglob("*.py")
        for key in re.findall(r"""(?<![\w.])t\(\s*"([a-z_]+\.[\w.]+)\"""", path.read_text("utf-8"))
        if path.name not in ("strings.py", "table.py")
    }
    assert {(name, key) for name, key in asked if key not in WORDS} == set()


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
    assert units.rank_ranges([3, 0, 1, 2, 6]) == "0-3, 6"


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
