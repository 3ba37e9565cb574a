"""The picture of two cut matrices: its numbers are the formula's, in both languages."""

from __future__ import annotations

import pytest

from dlcourse.explorer import explore
from dlcourse.figures.matrix_cut import CUTS, HIDDEN, TOKENS, WIDTH, Cut, cut_and_sent, pair_bytes
from dlcourse.words.strings import set_language
from dlcourse.words.units import human_bytes

UNIT = 3 / 4 * 4 * TOKENS * WIDTH  # an all-gather of x among four ranks
# Of h, four times as wide as x: an all-gather 4, an all-reduce 8; of x 1 and 2
UNITS = {
    ("columns", "rows"): (2, 2),
    ("columns", "columns"): (4 + 1, 8 + 2),
    ("rows", "rows"): (8 + 2, 4 + 1),
    ("rows", "columns"): (8 + 1, 8 + 1),
}


@pytest.mark.parametrize("lang", ["ko", "en"])
@pytest.mark.parametrize("ways", UNITS)
def test_a_picture_says_what_the_formula_says(ways, lang):
    set_language(lang)
    first, second = map(Cut, ways)
    sent = pair_bytes(first, second, 4)
    back = sum(size for name, size in sent.items() if name.endswith("_backward"))
    assert (sum(sent.values()) - back, back) == tuple(UNIT * units for units in UNITS[ways])
    picture = cut_and_sent(first, second, 4)
    title, last = picture.text.splitlines()[0], picture.text.splitlines()[-1]
    assert human_bytes(sum(sent.values())) in title
    assert human_bytes(2 * 4 * WIDTH * HIDDEN / 4) in title
    assert human_bytes(sum(sent.values()) - back) in last and human_bytes(back) in last
    drawn = picture.svg
    for size in sent.values():
        assert not size or f">{human_bytes(size)}<" in drawn


def test_one_rank_sends_nothing_and_more_ranks_send_a_little_more():
    sent = [sum(pair_bytes(Cut.COLUMNS, Cut.ROWS, ranks).values()) for ranks in (1, 2, 4, 8)]
    assert sent[0] == 0 and sent == sorted(sent) and sent[-1] < 4 * 4 * TOKENS * WIDTH


@pytest.mark.parametrize(("lang", "word"), [("ko", "열"), ("en", "columns")])
def test_the_sliders_say_the_cuts_in_the_readers_language(lang, word):
    set_language(lang)
    shown = explore(cut_and_sent, first=CUTS, second=CUTS, ranks=[1, 2, 4, 8])
    assert len(shown.pictures) == 16
    assert word in [str(value) for value in shown.values[0]]
