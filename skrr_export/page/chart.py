"""A chart of how the discrepancy grows with the sparsity, a line a method, as SVG for a page.

Colours and weights of the lines are the page's: the chart names classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skrr_export.page.markup import Markup, element, joined, number, percent, tick

Point = tuple[float, float]

_LINE_HEIGHT = 17  # of the labels beside the lines
_LABEL_LETTERS = 23  # that fit beside the chart


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the chart, with a marker where its plan lies."""

    label: str
    colour: int
    """Number of the page's colour."""
    points: tuple[Point, ...] = ()
    """Sparsity and discrepancy, by rising sparsity."""
    marker: Point | None = None
    comparable: bool = True
    """Whether its discrepancies mean the same as those of the plan that is shown; drawn dashed if not."""
    shown: bool = False
    """Whether it belongs to the plan that is shown."""
    minor: bool = False
    """Whether its plan has another line that matters more."""


@dataclass(frozen=True, slots=True)
class Size:
    """Size of a chart, and the room around the plot in it, in pixels."""

    width: int
    height: int
    left: int = 58
    right: int = 20
    top: int = 34
    bottom: int = 46
    labels: bool = False
    """Whether the lines are labelled, to the right of the plot."""


WIDE = Size(720, 420, right=196, labels=True)
NARROW = Size(400, 330)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: its range, and where its gridlines are."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def place(self, value: float) -> float | None:
        """Where a value lies, from 0 to 1; None where the axis has no place for it."""
        if not self.logarithmic:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return None
        low, high = math.log10(self.low), math.log10(self.high)
        return (math.log10(value) - low) / (high - low)


def chart(lines: Sequence[Line], size: Size) -> Markup:
    """Draw a chart of lines of which at least one has a point or a marker."""
    plot = _Plot.of(lines, size)
    ordered = sorted(lines, key=lambda line: (line.shown, not line.minor))  # what matters most is drawn last
    return element(
        "svg",
        *_grid(plot),
        *(_path(line, plot) for line in ordered),
        *(_dots(line, plot) for line in ordered if line.shown and not line.minor),
        *(_marker(line, plot) for line in ordered if line.marker),
        *(_labels(lines, plot) if size.labels else ()),
        viewBox=f"0 0 {size.width} {size.height}",
        role="img",
        aria_label="Discrepancy against sparsity, a line a method; the table below has the numbers of the plans",
    )


def linear_axis(high: float, steps: int, *, snug: bool = False) -> Axis:
    """An axis from 0 with a gridline at every round number; a snug one ends at `high` and not at a gridline."""
    if high <= 0:
        high = 1.0
    step = _round_up(high / steps)
    count = math.floor(high / step + 1e-9) if snug else math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(count + 1))
    return Axis(0.0, high if snug else ticks[-1], ticks)


def discrepancy_axis(values: Sequence[float], *, decades: float = 2.0) -> Axis:
    """An axis for discrepancies; logarithmic if they span more than so many decades."""
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 10**decades * min(positive):
        return linear_axis(max(positive, default=0.0), 5)
    return _logarithmic_axis(min(positive), max(positive))


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move positions, given in rising order, as little as needed for a gap between them, within a range if it can be.

    Those that would lie on each other form a block, which lies about the mean of what its members want.
    """
    blocks: list[list[float]] = []
    for position in wanted:
        blocks.append([position])
        while len(blocks) > 1 and _block_ends(blocks[-2], gap)[1] + gap > _block_ends(blocks[-1], gap)[0]:
            last = blocks.pop()
            blocks[-1] += last
    places = [_block_ends(block, gap)[0] + index * gap for block in blocks for index in range(len(block))]
    return _within(places, gap, low, high)


@dataclass(frozen=True, slots=True)
class _Plot:
    size: Size
    x: Axis
    y: Axis

    @classmethod
    def of(cls, lines: Sequence[Line], size: Size) -> _Plot:
        points = [point for line in lines for point in (*line.points, *([line.marker] if line.marker else []))]
        furthest = max(sparsity for sparsity, _ in points)
        return cls(size, linear_axis(furthest, 5, snug=True), discrepancy_axis([value for _, value in points]))

    @property
    def right(self) -> int:
        return self.size.width - self.size.right

    @property
    def bottom(self) -> int:
        return self.size.height - self.size.bottom

    def across(self, sparsity: float) -> float:
        return self.size.left + (self.x.place(sparsity) or 0.0) * (self.right - self.size.left)

    def up(self, discrepancy: float) -> float | None:
        place = self.y.place(discrepancy)
        return None if place is None else self.bottom - place * (self.bottom - self.size.top)

    def points(self, points: Sequence[Point]) -> list[Point]:
        """Where points lie in the picture; those that the axis has no place for are left out."""
        placed = ((self.across(sparsity), self.up(value)) for sparsity, value in points)
        return [(x, y) for x, y in placed if y is not None]


def _grid(plot: _Plot) -> Iterator[Markup]:
    left = plot.size.left
    for value in plot.y.ticks:
        y = plot.up(value)
        if y is not None:
            yield _segment("grid", left, y, plot.right, y)
            yield _words("tick end", left - 8, y + 4, tick(value))
    for value in plot.x.ticks:
        x = plot.across(value)
        yield _segment("grid-tick", x, plot.bottom, x, plot.bottom + 4)
        yield _words("tick middle", x, plot.bottom + 19, f"{tick(round(100 * value, 9))}%")
    yield _segment("axis", left, plot.bottom, plot.right, plot.bottom)
    yield _words("axis-name", 2, 14, "D, logarithmic" if plot.y.logarithmic else "D")
    yield _words("axis-name middle", (left + plot.right) / 2, plot.size.height - 6, "sparsity")


def _path(line: Line, plot: _Plot) -> Markup:
    points = " ".join(f"{_short(x)},{_short(y)}" for x, y in plot.points(line.points))
    kind = " ".join(name for name in ("shown", "minor") if getattr(line, name))
    dashes = None if line.comparable else "5 4"
    return element("polyline", points=points, class_=f"line c{line.colour} {kind}".strip(), stroke_dasharray=dashes)


def _dots(line: Line, plot: _Plot) -> Markup:
    return joined(_dot(line, point, plot, kind="dot", radius=2.2) for point in line.points)


def _marker(line: Line, plot: _Plot) -> Markup:
    assert line.marker is not None
    return _dot(line, line.marker, plot, kind="marker", radius=6.0 if line.shown else 4.5)


def _dot(line: Line, point: Point, plot: _Plot, *, kind: str, radius: float) -> Markup:
    title = element("title", f"{line.label}: sparsity {percent(point[0])}, D {number(point[1])}")
    return joined(
        element("circle", title, cx=_short(x), cy=_short(y), r=radius, class_=f"{kind} c{line.colour}")
        for x, y in plot.points([point])
    )


def _labels(lines: Sequence[Line], plot: _Plot) -> Iterator[Markup]:
    """A label to the right of where each line ends, moved out of the way of the others."""
    ends = [(line, points[-1]) for line in lines if (points := plot.points(_whole(line)))]
    if len(ends) * _LINE_HEIGHT > plot.bottom - plot.size.top:
        return  # too many to tell apart; the table names them
    ends.sort(key=lambda end: end[1][1])
    places = spread([y for _, (_, y) in ends], _LINE_HEIGHT, plot.size.top - 8, plot.bottom)
    for (line, (x, y)), place in zip(ends, places, strict=True):
        start, turn, stop = _short(x + 9), _short(plot.right + 10), _short(plot.right + 20)
        bend = f"M{start} {_short(y)}L{turn} {_short(y)} {stop} {_short(place)}"
        yield element("path", d=bend, class_=f"leader c{line.colour}")
        kind = "label shown" if line.shown and not line.minor else "label"
        yield _words(f"{kind} c{line.colour}", plot.right + 25, place + 4, _cut(line.label))


def _whole(line: Line) -> list[Point]:
    return [*line.points, *([line.marker] if line.marker else [])]


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", x1=_short(x1), y1=_short(y1), x2=_short(x2), y2=_short(y2), class_=kind)


def _words(kind: str, x: float, y: float, text: str) -> Markup:
    return element("text", text, x=_short(x), y=_short(y), class_=kind)


def _cut(label: str) -> str:
    return label if len(label) <= _LABEL_LETTERS else f"{label[: _LABEL_LETTERS - 1]}…"


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, and so on, times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= value * (1 - 1e-9))


def _logarithmic_axis(low: float, high: float) -> Axis:
    """From the last power of ten, or twice or five times one, below the values to the first above them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    marks = [float(f"{factor}e{power}") for power in range(first, last + 1) for factor in (1, 2, 5)]
    below = max(mark for mark in marks if mark <= low * (1 + 1e-9))
    above = min(mark for mark in marks if mark >= high * (1 - 1e-9))
    stride = math.ceil((last - first) / 7)
    decades = [float(f"1e{power}") for power in range(first, last + 1, stride)]
    ticks = tuple(mark for mark in (marks if last - first <= 3 else decades) if below <= mark <= above)
    return Axis(below, above, ticks, logarithmic=True)


def _block_ends(block: Sequence[float], gap: float) -> Point:
    middle, half = sum(block) / len(block), gap * (len(block) - 1) / 2
    return middle - half, middle + half


def _within(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Push positions that keep a gap back into a range, from its upper end and then from its lower one."""
    pushed: list[float] = []
    limit = high
    for place in reversed(places):
        pushed.append(min(place, limit))
        limit = pushed[-1] - gap
    limit, result = low, []
    for place in reversed(pushed):
        result.append(max(place, limit))
        limit = result[-1] + gap
    return result
