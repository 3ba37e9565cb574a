"""The picture of collectives reads its colours from the digits; exercises count rounds rightly."""

from __future__ import annotations

import pytest

from dlcourse.course.exercises import common_module
from dlcourse.figures.collective_buffers import buffers_figure, sources
from dlcourse.figures.colors import rank_color

rounds = common_module("01").rounds

BEFORE = [[1, 2], [10, 20]]
AFTER = [[11, 2], [10, 0]]


def traces(figure):
    return {trace.name: trace for trace in figure.data if trace.name}


def test_digits_tell_the_ranks():
    assert sources(1011) == [0, 1, 3]
    assert sources(0) == []


def test_a_cell_has_a_stripe_for_each_rank_in_it_and_a_frame_where_a_number_is_new():
    figure = buffers_figure({"a": BEFORE, "b": AFTER}, title="x", lang="en")
    found = traces(figure)
    # Rank 0: 1 and 2, then half of 11, and 2. Rank 1: 10 and 20, then half of 11, and 10.
    assert len(found["rank 0"].x) == len(found["rank 1"].x) == 4
    assert found["rank 0"].marker.color == rank_color(0)
    assert min(found["rank 0"].width) == pytest.approx(max(found["rank 0"].width) / 2)
    assert list(found["changed"].x).count(None) == 1  # 11; the emptied cell is not framed
    texts = next(trace for trace in figure.data if getattr(trace, "mode", "") == "text")
    assert list(texts.text) == ["1", "2", "10", "20", "11", "2", "10"]
    assert figure.layout.title.text == "x"


def test_stages_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"stages has panels of \[1, 2\] ranks"):
        buffers_figure({"a": BEFORE, "b": AFTER[:1]}, title="x")
    with pytest.raises(ValueError, match="holds 100, which has more digits than the 2 ranks"):
        buffers_figure({"a": [[100], [1]]}, title="x")


CHAIN = [[("send", 1)], [("recv", 0), ("send", 2)], [("recv", 1), ("send", 3)], [("recv", 2)]]
STAR = [[("send", 1), ("send", 2), ("send", 3)], *([("recv", 0)] for _ in range(3))]
TREE = [
    [("send", 1), ("send", 2)],
    [("recv", 0), ("send", 3)],
    [("recv", 0)],
    [("recv", 1)],
]


@pytest.mark.parametrize(("messages", "wanted"), [(CHAIN, 3), (STAR, 3), (TREE, 2), ([[], []], 0)])
def test_rounds(messages, wanted):
    assert rounds(messages) == wanted


def test_messages_without_a_partner_have_no_rounds():
    assert rounds([[("send", 1)], []]) is None
    assert rounds([[("recv", 1)], [("recv", 0)]]) is None
