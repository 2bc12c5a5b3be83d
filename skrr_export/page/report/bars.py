"""Horizontal bars, a row a subject.

Names and numbers are HTML and the bars SVG that is measured in percent, so that they fit any width and stay readable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skrr_export.measure.record import SubjectRecord
from skrr_export.page.chart import Axis, linear_axis
from skrr_export.page.markup import Markup, element, joined, tick
from skrr_export.page.parts import NOTHING
from skrr_export.page.report.values import ABSENT, reason

_STEPS = 4
"""Gridlines, about."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar, or a mark across it."""

    kind: str
    """Class that gives it its colour."""
    size: float
    """How long the piece is; of a mark, where it lies."""
    title: str
    """What a pointer over it shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A subject's bar."""

    subject: SubjectRecord
    value: str = ABSENT
    remark: str = ""
    parts: tuple[Part, ...] = ()
    """Pieces, one after the other; none: the row says why."""
    marks: tuple[Part, ...] = ()
    dots: tuple[Part, ...] = ()
    """Single runs, the first one at the top of the bar."""


def bars(label: str, unit: str, rows: Sequence[Row]) -> Markup:
    """Draw bars.

    Args:
        label: what the chart shows, for those who do not see it.
        unit: of all sizes.
        rows: at least one, each a subject's.
    """
    axis = linear_axis(max(map(_reach, rows)), _STEPS, snug=True)
    told = "; ".join(f"{row.subject.title}: {row.value}" for row in rows)
    scale = _scale(axis, unit) if any(row.parts for row in rows) else NOTHING
    content = [*(_row(row, axis) for row in rows), scale]
    return element("div", joined(content, "\n"), class_="bars", role="img", aria_label=f"{label}. {told}")


def _reach(row: Row) -> float:
    return max([sum(part.size for part in row.parts), *(part.size for part in (*row.marks, *row.dots))])


def _row(row: Row, axis: Axis) -> Markup:
    subject = row.subject
    name = element("span", subject.title, element("code", subject.name), class_="bar-name")
    value = element("span", element("b", row.value), element("span", row.remark), class_="bar-value")
    if not row.parts:
        why = reason(subject)
        return element("div", name, element("span", why, class_="bar-reason", title=why), class_="bar-row missing")
    drawn = [*_grid(axis), *_pieces(row, axis), *_dots(row, axis), *(_mark(mark, axis) for mark in row.marks)]
    return element("div", name, element("svg", *drawn, class_="track"), value, class_="bar-row")


def _grid(axis: Axis) -> Iterator[Markup]:
    for value in axis.ticks:
        x = _percent(axis, value)
        yield element("line", x1=x, x2=x, y1="0%", y2="100%", class_="grid" if value else "axis")


def _pieces(row: Row, axis: Axis) -> Iterator[Markup]:
    start = 0.0
    for part in row.parts:
        place = {"x": _percent(axis, start), "y": "22%", "width": _percent(axis, part.size), "height": "56%"}
        yield element("rect", element("title", part.title), class_=part.kind, **place)
        start += part.size


def _dots(row: Row, axis: Axis) -> Iterator[Markup]:
    for number, dot in enumerate(row.dots):
        y = f"{26 + 48 * number / max(len(row.dots) - 1, 1):.1f}%"
        yield element(
            "circle", element("title", dot.title), cx=_percent(axis, dot.size), cy=y, r=2.2, class_=f"run {dot.kind}"
        )


def _mark(mark: Part, axis: Axis) -> Markup:
    x = _percent(axis, mark.size)
    return element("line", element("title", mark.title), x1=x, x2=x, y1="10%", y2="90%", class_=f"mark {mark.kind}")


def _scale(axis: Axis, unit: str) -> Markup:
    texts = [
        element("text", tick(value), x=_percent(axis, value), y=12, class_="tick" if value else "tick first")
        for value in axis.ticks
    ]
    return element(
        "div",
        element("span", class_="bar-name"),
        element("svg", *texts, class_="scale"),
        element("span", unit, class_="bar-value"),
        class_="bar-row bar-scale",
    )


def _percent(axis: Axis, value: float) -> str:
    return f"{100 * (axis.place(value) or 0.0):.2f}%"
