"""The pictures of lesson 01 say what the formulas say."""

from __future__ import annotations

import pytest

from dlcourse.figures.collectives import (
    CARD,
    CARDS,
    GPUS,
    GRADIENTS,
    NETWORK,
    SIZES,
    ring_tree_direct,
    show_cards,
    show_equal,
    show_here,
    show_strategies,
)
from dlcourse.words.strings import set_language
from dlcourse.words.units import human_seconds


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ranks", [4, 64, 1024])
def test_the_slider_names_the_winner_of_ring_and_tree_and_the_models_seconds(size, ranks):
    set_language("en")
    said = ring_tree_direct(size, ranks).text
    ring, tree, direct = (
        NETWORK.predict(f"{name}_all_reduce", SIZES[size], ranks)
        for name in ("ring", "tree", "direct")
    )
    assert f"the {'ring' if ring < tree else 'tree'} beats the " in said
    for seconds in (ring, tree, direct):
        assert human_seconds(seconds) in said
    assert f"{2 * (ranks - 1)} rounds" in said


def test_a_ring_for_each_card_takes_an_eighth_of_one_ring():
    naive, one, each = (float(row[2].removesuffix(" s")) for row in show_cards().rows)
    assert naive == pytest.approx(2 * (GPUS - 1) * GRADIENTS / CARD, abs=0.01)
    assert one == pytest.approx(2 * (GPUS - 1) / GPUS * GRADIENTS / CARD, abs=0.01)
    assert each == pytest.approx(one / CARDS, abs=0.01)


def test_a_sum_beyond_the_tolerance_or_other_bits_in_one_rank_are_told():
    set_language("en")
    same = [{"ring": [1.0]}, {"ring": [1.0]}]
    show_equal([{"ring": 1e-7}] * 2, 1e-6, same)
    with pytest.raises(AssertionError, match="one process"):
        show_equal([{"ring": 1e-7}, {"ring": 1e-5}], 1e-6, same)
    with pytest.raises(AssertionError, match="same bits"):
        show_equal([{"ring": 1e-7}] * 2, 1e-6, [{"ring": [1.0]}, {"ring": [1.5]}])


def rows(**took):
    return [
        {"algorithm": f"{name}_all_reduce", "bytes": 1024 << k, "seconds": seconds}
        for name, each in took.items()
        for k, seconds in enumerate(each)
    ]


def test_the_title_says_where_this_machine_beats_the_ring():
    set_language("en")
    found = rows(ring=[2, 2, 2], naive=[1, 1, 3], tree=[1, 1, 1])
    title = show_here(found).layout.title.text
    assert "naive up to 2" in title and "the tree at all sizes" in title
    found = rows(ring=[2, 2, 2], naive=[3, 1, 1], tree=[3, 3, 3])
    title = show_here(found).layout.title.text
    assert "naive at 2 of 3 sizes" in title and "the tree at 0 of 3 sizes" in title


def test_bytes_of_the_strategies_are_called_what_they_are():
    """Gloo's reduce-scatter sends an all-reduce, so these are not the bytes on the wire."""
    set_language("en")
    found = {"DDP": {"all_reduce": 2.0 * 2**20}, "FSDP2": {"reduce_scatter": 1.0 * 2**20}}
    assert "in theory" in show_strategies(found).layout.xaxis.title.text
