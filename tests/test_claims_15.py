"""The verdicts of lesson 15, computed anew.

The planner gives B7's figures, so they move where the planner does: by two cells of 53, or a tenth
of a percentage. What the verdict says must stay.
"""

from __future__ import annotations

import pytest

from dlcourse.course.claims import find_claim
from dlcourse.plan.size_rule import size_map

LARGE = ("146B", "310B", "1008B")


def test_b7():
    claim = find_claim("B7")
    assert claim.verdict == "holds_when"
    found = {figure.name: figure.value for figure in claim.figures}
    maps = {"h100": size_map("h100"), "a100": size_map("a100-40")}
    for name, one in maps.items():
        assert one.possible == 53
        above = [c for c in one.cells if c.way == "3d_offload" and c.verdict != "nothing"]
        below = [c for c in one.cells if c.way != "3d_offload" and c.verdict != "nothing"]
        assert (len(above), len(below)) == (9, 44)
        right = [sum(c.verdict == "right" for c in cells) for cells in (below, above)]
        assert right[0] == pytest.approx(found[f"below_{name}"], abs=2)
        assert right[1] == pytest.approx(found[f"above_{name}"], abs=1)
        assert right[0] / 44 > 0.6 > 0.25 > right[1] / 9
    large = [c.slower for c in maps["h100"].cells if c.way == "3d_offload" and c.slower]
    assert 100 * (min(large) - 1) == pytest.approx(found["least"], abs=2)
    assert 100 * (max(large) - 1) == pytest.approx(found["most"], rel=0.1)
    # Few tokens for each GPU: data parallelism alone has nothing to hide its traffic behind
    few = maps["h100"].cell("1.3B", 2048)
    assert few.slower == pytest.approx(found["few_tokens"], rel=0.1)
    assert few.fastest.tensor > 1
    # Above 100B without ZeRO 3 and without offload
    for name, gpu in (("h100", "h100"), ("a100", "a100-40")):
        plain = size_map(gpu, models=LARGE, way="3d")
        fit = [c.slower for c in plain.cells if c.slower]
        assert len(fit) == pytest.approx(found[f"plain_{name}"], abs=1)
        if name == "h100":
            assert 100 * (max(fit) - 1) == pytest.approx(found["plain_most"], abs=2)
