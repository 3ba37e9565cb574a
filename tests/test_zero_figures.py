"""Lesson 06's slider says what the formulas say, and its pictures refuse what its text denies."""

from __future__ import annotations

import re

import pytest

from dlcourse.explorer import explore
from dlcourse.figures import zero
from dlcourse.figures.zero import CARD_GB, MODELS, PRECISIONS, fits_on_a_card
from dlcourse.words import strings

RANKS = [1, 2, 4, 8, 16, 64, 256, 1024]


@pytest.fixture(autouse=True)
def english():
    strings.set_language("en")


def gb(picture) -> list[float]:
    """What stands behind the four bars."""
    return [float(number) for number in re.findall(r": ([\d.]+) GB \(", picture.text)]


def test_the_papers_table_comes_out():
    """7.5 billion parameters on 64 GPUs: Rajbhandari et al., figure 1."""
    sizes = gb(fits_on_a_card("7.5B", 64, "bf16 + fp32"))
    assert sizes == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.05)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("model", MODELS)
def test_the_title_says_which_stage_fits(model, precision):
    for ranks in RANKS:
        picture = fits_on_a_card(model, ranks, precision)
        fitting = [stage for stage, size in enumerate(gb(picture)) if size <= CARD_GB]
        said = picture.text.splitlines()[0]
        if not fitting:
            assert "no stage fits" in said
        elif fitting[0]:
            assert f"from stage {fitting[0]} on" in said
        else:
            assert "even data parallelism fits" in said


def test_70b_never_fits_by_stages_1_and_2():
    for precision in PRECISIONS:
        _, one, two, three = gb(fits_on_a_card("70B", 10**9, precision))
        assert one > two > CARD_GB > three


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_every_position_is_drawn_in_both_languages(lang):
    strings.set_language(lang)
    shown = explore(fits_on_a_card, model=MODELS, ranks=RANKS, precision=PRECISIONS)
    assert len(shown.pictures) == len(MODELS) * len(RANKS) * len(PRECISIONS)


def peak(**sizes):
    return dict.fromkeys(("parameters", "gradients", "optimizer_state", "activations"), 0) | sizes


def test_gradients_in_flight_that_count_as_activations_are_refused():
    weights = 4 * zero.NUM_PARAMETERS
    right = [peak(communication=n * weights) for n in (1, 2, 3)]
    assert "3.00 times" in zero.show_small(right).layout.title.text
    wrong = [*right[:2], peak(activations=weights, communication=2 * weights)]
    with pytest.raises(AssertionError, match="gradients in flight"):
        zero.show_small(wrong)
