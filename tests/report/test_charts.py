"""Curves: every point where it belongs, in percent of the panel."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest

from climafuse.report.charts import MOST_POINTS, Curve, line_chart


def places(path):
    return [tuple(map(float, pair.split())) for pair in re.findall(r"[ML]([-\d.]+ [-\d.]+)", path)]


def test_points_lie_where_the_ticks_say():
    # From (0, 0) to (100, 2): ticks of the value axis at 0, 0.5, … 2, from the bottom (100 %) to the top.
    chart = line_chart([Curve("gate", "a", [(0, 0.0), (50, 0.5), (100, 2.0)])], from_zero=True)
    assert places(chart.paths[0].path) == [(0, 1000), (500, 750), (1000, 0)]
    assert chart.y_ticks == ((100.0, "0"), (75.0, "0.5"), (50.0, "1"), (25.0, "1.5"), (0.0, "2"))
    assert {words: place for place, words in chart.x_ticks}["50"] == 50.0
    assert (chart.paths[0].label, chart.paths[0].style, chart.paths[0].end) == ("gate", "a", "2")
    assert not chart.logarithmic


def test_values_that_span_much_are_logarithmic():
    chart = line_chart([Curve("loss", "a", [(1, 10.0), (2, 1.0), (3, 0.1)])])
    assert chart.logarithmic
    high, middle, low = (place for _, place in places(chart.paths[0].path))
    assert middle - high == pytest.approx(low - middle, abs=0.2)  # a tenth is as far down each time
    ticks = {words: place for place, words in chart.y_ticks}
    assert ticks["1"] == pytest.approx(middle / 10, abs=0.02)
    assert not line_chart([Curve("loss", "a", [(1, 10.0), (2, 5.0)])]).logarithmic
    assert not line_chart([Curve("loss", "a", [(1, 10.0), (2, -1.0)])]).logarithmic


@pytest.mark.parametrize("low", [0.4, 0.04, 0.004, 0.0004, 4e-9])
def test_ticks_leave_room_for_each_other(low):
    """Oracle: equal factors are equal distances, so that room is counted in factors."""
    chart = line_chart([Curve("loss", "a", [(1, 5.0), (2, low)])])
    ticks = [(place, float(words)) for place, words in chart.y_ticks]
    span = 5.0 * 1.1 / (low / 1.1)
    for (below, smaller), (place, value) in pairwise(ticks):
        assert below - place == pytest.approx(100 * math.log(value / smaller) / math.log(span), abs=0.01)
        assert below - place >= 7  # a line of text of 9.4 pixels in 153 of them, on paper
    powers = {10.0**n for n in range(-8, 1) if low <= 10.0**n}
    assert powers <= {value for _, value in ticks}


def test_curves_share_their_axes():
    chart = line_chart(
        [Curve("a", "a", [(0, 1.0), (10, 2.0)]), Curve("b", "b", [(5, 3.0)]), Curve("none", "c", [])]
    )
    assert [path.label for path in chart.paths] == ["a", "b"]
    assert places(chart.paths[1].path)[0][0] == 500
    assert places(chart.paths[1].path)[0][1] < places(chart.paths[0].path)[1][1]


def test_even_and_lone_values_and_nothing():
    assert (
        line_chart([Curve("zero", "a", [(0, 0.0), (9, 0.0)])], from_zero=True).paths[0].path
        == "M0.0 1000.0L1000.0 1000.0"
    )
    assert line_chart([Curve("even", "a", [(0, 3.0), (9, 3.0)])]) is not None
    assert line_chart([Curve("lone", "a", [(0, 3.0)])]) is None
    assert line_chart([]) is None


def test_long_curves_are_thinned_and_keep_their_ends():
    points = [(step, 1 + step % 7) for step in range(100_000)]
    (path,) = line_chart([Curve("loss", "a", points)]).paths
    kept = places(path.path)
    assert len(kept) == MOST_POINTS
    assert (kept[0][0], kept[-1][0]) == (0.0, 1000.0)
    assert path.marks == ""  # dots would run together
