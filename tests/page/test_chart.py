"""The chart of discrepancy against sparsity."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.page.chart import NARROW, WIDE, Line, Size, chart, discrepancy_axis, linear_axis, spread

SHARES = st.floats(0, 1).map(lambda value: 0.0 if value < 1e-30 else value)
SIZES = st.just(0.0) | st.floats(1e-30, 1e30)
POINTS = st.lists(st.tuples(SHARES, SIZES), min_size=1, max_size=5).map(lambda points: tuple(sorted(points)))
LINES = st.builds(
    Line,
    st.text(st.characters(categories=["L", "P"]), max_size=40),
    st.integers(0, 7),
    POINTS,
    st.none() | st.tuples(SHARES, SIZES),
    comparable=st.booleans(),
    shown=st.booleans(),
    minor=st.booleans(),
)


def drawn(lines: list[Line], size: Size = WIDE) -> ET.Element:
    """The chart, read back."""
    return ET.fromstring(chart(lines, size))


def places(polyline: ET.Element) -> list[tuple[float, float]]:
    """The points of a line as they are drawn."""
    pairs = [pair.split(",") for pair in polyline.get("points", "").split()]
    return [(float(x), float(y)) for x, y in pairs]


def texts(root: ET.Element, kind: str) -> list[str]:
    """The texts of a class."""
    return [str(text.text) for text in root.iter("text") if kind in text.get("class", "").split()]


# Axes


@given(st.floats(1e-30, 1e30), st.integers(2, 8))
def test_gridlines_stand_at_round_numbers(high: float, steps: int) -> None:
    axis = linear_axis(high, steps)
    step = axis.ticks[1] - axis.ticks[0]
    mantissa = float(f"{step:e}".partition("e")[0])
    assert any(math.isclose(mantissa, good, rel_tol=1e-6) for good in (1, 2, 5))
    assert axis.ticks[0] == axis.low == 0
    assert axis.high == axis.ticks[-1]
    assert axis.high >= high * (1 - 1e-8)
    assert axis.high - step < high
    assert len(axis.ticks) <= steps + 1
    assert all(math.isclose(b - a, step, rel_tol=1e-6) for a, b in pairwise(axis.ticks))


@given(st.floats(1e-30, 1))
def test_a_snug_axis_ends_where_its_values_do(high: float) -> None:
    axis = linear_axis(high, 5, snug=True)
    assert axis.high == high
    assert all(0 <= mark <= high * (1 + 1e-8) for mark in axis.ticks)
    assert 3 <= len(axis.ticks) <= 6


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([0.001, 0.1], False),
        ([0.001, 0.101], True),
        ([0.0, 0.001, 0.05], False),
        ([0.0, 0.001, 0.5], True),
        ([0.3], False),
        ([0.0], False),
        ([], False),
    ],
)
def test_discrepancies_over_more_than_two_decades_take_a_logarithmic_axis(
    values: list[float], logarithmic: bool
) -> None:
    assert discrepancy_axis(values).logarithmic is logarithmic


@given(st.floats(1e-30, 1e27), st.floats(101, 1e30))
def test_a_logarithmic_axis_holds_its_values_and_a_few_gridlines(low: float, ratio: float) -> None:
    high = min(low * ratio, 1e30)
    axis = discrepancy_axis([low, high])
    assert axis.logarithmic
    assert -1e-9 <= axis.place(low) < axis.place(high) <= 1 + 1e-9  # type: ignore[operator]
    assert 2 <= len(axis.ticks) <= 13
    assert all(0 <= axis.place(mark) <= 1 for mark in axis.ticks)  # type: ignore[operator]
    assert all(f"{mark:.5e}"[0] in "125" and float(f"{mark:.0e}") == mark for mark in axis.ticks)
    assert axis.place(0.0) is None


def test_places_on_an_axis() -> None:
    assert linear_axis(0.4, 4).place(0.1) == pytest.approx(0.25)
    axis = discrepancy_axis([0.001, 1.0])
    assert (axis.low, axis.high) == (0.001, 1.0)
    assert axis.place(0.1) == pytest.approx(2 / 3)
    assert axis.ticks == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert discrepancy_axis([0.0001, 1.0]).ticks == (0.0001, 0.001, 0.01, 0.1, 1.0)


# Labels


@given(st.lists(st.floats(0, 300), max_size=12).map(sorted))
def test_labels_keep_their_order_and_their_distance(wanted: list[float]) -> None:
    got = spread(wanted, 17, 0, 300)
    assert len(got) == len(wanted)
    assert all(b - a >= 17 - 1e-6 for a, b in pairwise(got))
    assert all(-1e-6 <= place <= 300 + 1e-6 for place in got)


def test_labels_move_no_further_than_they_must() -> None:
    assert spread([10, 50, 90], 17, 0, 300) == [10, 50, 90]
    assert spread([100, 100], 20, 0, 300) == [90, 110]
    assert spread([10, 100, 104], 20, 0, 300) == [10, 92, 112]
    assert spread([0, 2], 20, 0, 300) == [0, 20]
    assert spread([299, 300], 20, 0, 300) == [280, 300]


# The chart


def test_a_line_is_drawn_where_its_points_are() -> None:
    root = drawn([Line("a", 0, ((0.1, 0.1), (0.2, 0.4)), marker=(0.2, 0.3))])
    (line,) = root.iter("polyline")
    left, right, bottom, top = WIDE.left, WIDE.width - WIDE.right, WIDE.height - WIDE.bottom, WIDE.top
    assert places(line) == [
        (pytest.approx((left + right) / 2, abs=0.1), pytest.approx(bottom - (bottom - top) / 4, abs=0.1)),
        (pytest.approx(right, abs=0.1), pytest.approx(top, abs=0.1)),
    ]
    (marker,) = root.iter("circle")
    assert float(marker.get("cy", "")) == pytest.approx(bottom - 3 * (bottom - top) / 4, abs=0.1)
    assert marker.findtext("title") == "a: sparsity 20.0%, D 0.300"
    assert texts(root, "tick") == ["0", "0.1", "0.2", "0.3", "0.4", "0%", "5%", "10%", "15%", "20%"]
    assert texts(root, "axis-name") == ["D", "sparsity"]


def test_the_chart_says_that_it_is_logarithmic() -> None:
    root = drawn([Line("a", 0, ((0.0, 0.0), (0.1, 0.001), (0.2, 0.9)))])
    assert texts(root, "axis-name") == ["D, logarithmic", "sparsity"]
    (line,) = root.iter("polyline")
    assert len(places(line)) == 2  # 0 has no logarithm


def test_lines_that_cannot_be_compared_are_dashed() -> None:
    points = ((0.1, 0.1), (0.2, 0.4))
    root = drawn([Line("a", 0, points), Line("b", 1, points, comparable=False)])
    assert [line.get("stroke-dasharray") for line in root.iter("polyline")] == [None, "5 4"]
    assert [line.get("class") for line in root.iter("polyline")] == ["line c0", "line c1"]


def test_the_plan_that_is_shown_is_drawn_last_and_dotted() -> None:
    points = ((0.1, 0.1), (0.2, 0.4))
    lines = [Line("ours", 0, points, (0.2, 0.4), shown=True), Line("theirs", 1, points, (0.2, 0.4))]
    root = drawn([*lines, Line("ours, minor", 0, points, shown=True, minor=True)])
    assert [line.get("class") for line in root.iter("polyline")] == [
        "line c1",
        "line c0 shown minor",
        "line c0 shown",
    ]
    assert [circle.get("class") for circle in root.iter("circle")] == ["dot c0", "dot c0", "marker c1", "marker c0"]


def test_lines_are_labelled_where_there_is_room() -> None:
    lines = [Line(f"line {index}", index % 8, ((0.1, 0.1 + index),)) for index in range(4)]
    lines.append(Line("a name that is far too long for this", 7, ((0.1, 0.05),), shown=True))
    labels = ["line 3", "line 2", "line 1", "line 0", "a name that is far too…"]
    assert texts(drawn(lines), "label") == labels
    assert texts(drawn(lines), "shown") == labels[-1:]
    assert texts(drawn(lines, NARROW), "label") == []
    assert texts(drawn([Line("many", 0, ((0.1, 0.1),))] * 40), "label") == []


@given(st.lists(LINES, min_size=1, max_size=4), st.sampled_from([WIDE, NARROW]))
def test_everything_lies_within_the_picture(lines: list[Line], size: Size) -> None:
    text = chart(lines, size)
    root = ET.fromstring(text)
    assert root.get("viewBox") == f"0 0 {size.width} {size.height}"
    for shape in root.iter():
        for key, limit in [("x", size.width), ("cx", size.width), ("x1", size.width), ("x2", size.width)]:
            assert 0 <= float(shape.get(key, 0)) <= limit
        for key in ("y", "cy", "y1", "y2"):
            assert 0 <= float(shape.get(key, 0)) <= size.height
        for x, y in places(shape):
            assert size.left - 0.1 <= x <= size.width - size.right + 0.1
            assert size.top - 0.1 <= y <= size.height - size.bottom + 0.1


@given(POINTS)
def test_more_is_further_right_and_higher(points: tuple[tuple[float, float], ...]) -> None:
    root = drawn([Line("a", 0, points)])
    (line,) = root.iter("polyline")
    shown = [(x, y) for x, y in points if y > 0 or len(places(line)) == len(points)]
    got = places(line)
    assert len(got) == len(shown)
    for (a, b), (at, bt) in zip(pairwise(shown), pairwise(got), strict=True):
        assert bt[0] >= at[0]
        assert (bt[1] <= at[1]) if b[1] >= a[1] else (bt[1] >= at[1])
