"""Pictures of a plan."""

from __future__ import annotations

import io
import re
from collections import Counter
from itertools import pairwise
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from skrr_export.plan import Plan
from skrr_export.plan_view import describe, inset, summary, svg, table
from tests import bundles

SVG = "{http://www.w3.org/2000/svg}"
PLAN = Plan("t5", ((0, 0), (None, 1), (0, 2), (3, 2)))


def sized(sources: list[tuple[int | None, int | None]]) -> Plan:
    """The plan of these sources."""
    return Plan("t5", tuple(sources))


PLANS = st.integers(1, 8).flatmap(bundles.plans).map(sized)


def cells(root: ET.Element) -> list[ET.Element]:
    """The rectangles of the picture but its background."""
    return [shape for shape in root.findall(f"{SVG}rect") if shape.get("rx")]


def labels(root: ET.Element) -> list[str]:
    """The texts of the cells."""
    return [str(text.text) for text in root.findall(f"{SVG}text")[3:]]


@given(PLANS)
def test_the_picture_has_a_cell_a_position_and_an_arrow_a_reuse(plan: Plan) -> None:
    root = ET.fromstring(svg(plan))
    assert root.tag == f"{SVG}svg"
    assert len(cells(root)) == 2 * plan.num_layers == len(labels(root))
    for part in ("arrow", "tip"):
        assert len(root.findall(f"{SVG}path[@class='{part}']")) == plan.counts()["re-use"]
    dashed = [cell for cell in cells(root) if cell.get("stroke-dasharray")]
    assert len(dashed) == plan.counts()["skip"]


@given(PLANS)
def test_no_two_cells_lie_on_each_other_and_all_lie_within_the_picture(plan: Plan) -> None:
    root = ET.fromstring(svg(plan))
    width, height = (float(root.get(key, "")) for key in ("width", "height"))
    boxes = [[float(cell.get(key, "")) for key in ("x", "y", "width", "height")] for cell in cells(root)]
    assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
    ordered = sorted(boxes)
    for (x, y, w, h), (other_x, other_y, _, _) in pairwise(ordered):
        assert y + h <= other_y or x + w <= other_x


def test_an_arrow_leads_from_the_source_to_where_it_runs() -> None:
    root = ET.fromstring(svg(PLAN))
    rows = [float(cell.get("y", "")) + float(cell.get("height", "")) / 2 for cell in cells(root)[::2]]
    ends = []
    for path in root.findall(f"{SVG}path[@class='arrow']"):
        numbers = path.get("d", "").replace("M", " ").replace("C", " ").split()
        ends.append((rows.index(float(numbers[1])), rows.index(float(numbers[-1]))))
    assert ends == [(0, 2), (2, 3)]


def test_the_picture_says_what_each_position_does() -> None:
    root = ET.fromstring(svg(PLAN))
    assert labels(root) == ["0", "0", "1: skip", "1", "2: re-use 0", "2", "3", "3: re-use 2"]
    assert root.findall(f"{SVG}text")[0].text == summary(PLAN)


def test_the_same_plan_gives_the_same_picture() -> None:
    assert svg(PLAN) == svg(Plan.from_json(PLAN.to_json()))


@given(PLANS)
def test_the_summary_counts_what_the_plan_does(plan: Plan) -> None:
    counts = Counter(position.action for position in plan.positions())
    assert summary(plan) == (
        f"t5, {plan.num_layers} layers: {counts['keep']} sub-blocks kept, {counts['re-use']} re-used, "
        f"{counts['skip']} skipped"
    )


@given(PLANS)
def test_the_table_has_a_row_a_layer(plan: Plan) -> None:
    page = io.StringIO()
    Console(file=page, width=120).print(table(plan))
    title, body = page.getvalue().split("┏")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in body.splitlines() if "│" in line]
    positions = list(plan.positions())
    expected = [
        [str(attention.layer), describe(attention), describe(feed_forward), f"{attention.unit}, {feed_forward.unit}"]
        for attention, feed_forward in zip(positions[::2], positions[1::2], strict=True)
    ]
    assert rows == expected
    assert " ".join(title.split()) == summary(plan)


@given(PLANS)
def test_the_inset_is_the_same_drawing_cut_to_what_is_drawn(plan: Plan) -> None:
    root, whole = ET.fromstring(inset(plan)), ET.fromstring(svg(plan).replace('xmlns="http://www.w3.org/2000/svg"', ""))
    for tag in ("rect", "path"):
        drawn = [shape.attrib for shape in whole.findall(tag) if shape.get("fill") != "#ffffff"]
        assert [shape.attrib for shape in root.findall(tag)] == drawn
    assert [text.text for text in root.findall("text")] == [text.text for text in whole.findall("text")][1:]
    left, top, width, height = map(float, root.get("viewBox", "").split())
    for cell in root.findall("rect"):
        x, y, w, h = (float(cell.get(key, "")) for key in ("x", "y", "width", "height"))
        assert left < x
        assert top < y
        assert x + w < left + width
        assert y + h < top + height
    for path in root.findall("path[@class='arrow']"):
        start, bow, _, end = (float(x) for x in re.findall(r"(?:^M|[C ])(-?[\d.]+) [\d.]+", path.get("d", "")))
        furthest = (start + 3 * bow + 3 * bow + end) / 8  # of a Bézier curve at its middle
        assert left < furthest < left + width


def test_the_inset_has_no_room_to_spare() -> None:
    root = ET.fromstring(inset(Plan.identity("t5", 3)))
    assert root.get("viewBox") == "146 54 318 108"
    assert root.get("aria-label") == summary(Plan.identity("t5", 3))
