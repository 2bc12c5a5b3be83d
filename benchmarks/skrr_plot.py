"""The picture of skrr.py: the score of every plan against its D, taken in four ways, as an SVG file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_picture import sheets

from skrr_export.page.chart import Axis, discrepancy_axis, linear_axis
from skrr_export.page.markup import Markup, element, number, tick

Record = Mapping[str, Any]

WIDTH, HEIGHT = 900, 618
PANEL_WIDTH, PANEL_HEIGHT = 320, 220
LEFT, TOP = 52, 44
"""Of the first panel."""
GAP_ACROSS, GAP_DOWN = 40, 88
"""Between panels."""
KEY = 750
"""Left edge of the key."""
LINE = 22
LABEL = 50
"""Pixels from the middle of a label to that of the next, at least."""
RADIUS = 4.5
STYLE = """
svg { font: 13px system-ui, "Segoe UI", Roboto, Arial, sans-serif; background: var(--ground); }
text { fill: var(--ink); } .soft { fill: var(--soft); } .title { font-weight: 600; }
.reach { stroke: var(--c); stroke-width: 1.25; opacity: 0.55; }
.dense { stroke: var(--soft); stroke-dasharray: 5 4; }
"""


Outline = Callable[[float, float], str]


def _square(x: float, y: float) -> str:
    half = 0.9 * RADIUS
    return f"M{x - half:.1f} {y - half:.1f}h{2 * half:.1f}v{2 * half:.1f}h{-2 * half:.1f}Z"


def _triangle(x: float, y: float) -> str:
    half = 1.2 * RADIUS
    return f"M{x:.1f} {y - half:.1f}L{x + half:.1f} {y + 0.8 * half:.1f}H{x - half:.1f}Z"


def _circle(x: float, y: float) -> str:
    arc = f"a{RADIUS} {RADIUS} 0 0 1"
    return f"M{x - RADIUS:.1f} {y:.1f}{arc} {2 * RADIUS} 0{arc} {-2 * RADIUS} 0Z"


def _diamond(x: float, y: float) -> str:
    half = 1.25 * RADIUS
    return f"M{x:.1f} {y - half:.1f}L{x + half:.1f} {y:.1f}L{x:.1f} {y + half:.1f}L{x - half:.1f} {y:.1f}Z"


OUTLINES: Sequence[Outline] = (_circle, _square, _triangle, _diamond)
"""By rising sparsity."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A place for points, and its axes."""

    left: float
    top: float
    across: Axis
    up: Axis

    @property
    def right(self) -> float:
        """Its right edge."""
        return self.left + PANEL_WIDTH

    @property
    def bottom(self) -> float:
        """Its lower edge."""
        return self.top + PANEL_HEIGHT

    def x(self, value: float) -> float:
        """Where a D lies; one that a logarithmic axis has no place for lies on its edge."""
        return self.left + (self.across.place(value) or 0.0) * PANEL_WIDTH

    def y(self, value: float) -> float:
        """Where a score lies."""
        return self.bottom - (self.up.place(value) or 0.0) * PANEL_HEIGHT


def picture(records: Sequence[Record]) -> str:
    """Draw a panel for each way to take D.

    Args:
        records: of the dense encoder, of plans and of correlations.
    """
    plans = [record for record in records if record["kind"] == "plan"]
    colours = {label: index for index, label in enumerate(dict.fromkeys(plan["subject"] for plan in plans))}
    outlines = dict(zip(sorted({plan["sparsity"] for plan in plans}), OUTLINES, strict=True))
    [dense] = [record for record in records if record["kind"] == "dense"]
    up = linear_axis(max(record["score"]["high"] for record in (dense, *plans)), 5)
    parts: list[Markup] = []
    for index, way in enumerate(record for record in records if record["kind"] == "correlation"):
        panel = Panel(
            LEFT + index % 2 * (PANEL_WIDTH + GAP_ACROSS),
            TOP + index // 2 * (PANEL_HEIGHT + GAP_DOWN),
            discrepancy_axis([plan["discrepancies"][way["subject"]] for plan in plans], decades=0),  # as all panels
            up,
        )
        parts += [*_frame(panel, way), *_dense(panel, dense)]
        for plan in reversed(plans):  # of methods that found the same plan the first lies on top
            outline = outlines[plan["sparsity"]]
            parts.append(_point(panel, plan, way["subject"], outline, colours[plan["subject"]]))
    drawing = element(
        "svg",
        element("style", Markup(sheets() + STYLE)),
        *parts,
        *_key(colours, outlines),
        xmlns="http://www.w3.org/2000/svg",
        width=WIDTH,
        height=HEIGHT,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label="Scores of plans against their D, a panel for each way to take it",
    )
    return f"{drawing}\n"


def _frame(panel: Panel, way: Record) -> Iterator[Markup]:
    """The axes, and what the panel is of."""
    yield _words("title", panel.left, panel.top - 28, f"D {way['subject']}")
    rank, within = way["score"]["value"], way["score_within_sparsity"]
    yield _words("soft", panel.left, panel.top - 11, f"rank correlation {rank:.2f}, at one sparsity {within:.2f}")
    yield _words("axis-name end", panel.left - 8, panel.top - 11, "score")
    for value in panel.up.ticks:
        yield _segment("grid", panel.left, panel.y(value), panel.right, panel.y(value))
        yield _words("tick end", panel.left - 8, panel.y(value) + 4, tick(value))
    for value in panel.across.ticks:
        yield _segment("grid-tick", panel.x(value), panel.bottom, panel.x(value), panel.bottom + 4)
    for value in _labelled(panel):
        yield _words("tick middle", panel.x(value), panel.bottom + 19, tick(value))
    yield _segment("axis", panel.left, panel.bottom, panel.right, panel.bottom)
    yield _words("axis-name end", panel.right, panel.bottom + 38, "D, logarithmic" if panel.across.logarithmic else "D")


def _labelled(panel: Panel) -> list[float]:
    """The values on the lower axis whose labels do not touch; powers of ten before others."""
    chosen: list[float] = []
    for value in sorted(panel.across.ticks, key=lambda value: (not f"{value:e}".startswith("1.000000"), value)):
        if all(abs(panel.x(value) - panel.x(other)) > LABEL for other in chosen):
            chosen.append(value)
    return chosen


def _dense(panel: Panel, dense: Record) -> Iterator[Markup]:
    """The score of the dense encoder."""
    y = panel.y(dense["score"]["value"])
    yield _segment("dense", panel.left, y, panel.right, y)


def _point(panel: Panel, plan: Record, way: str, outline: Outline, colour: int) -> Markup:
    """A plan, and the interval of its score."""
    score, value = plan["score"], plan["discrepancies"][way]
    x, y = panel.x(value), panel.y(score["value"])
    told = f"{plan['subject']}, {plan['sparsity']:.0%}: score {number(score['value'])}, D {number(value)}"
    return element(
        "g",
        element("title", told),
        _segment("reach", x, panel.y(score["low"]), x, panel.y(score["high"])),
        element("path", d=outline(x, y), class_="marker"),
        class_=f"c{colour}",
    )


def _key(colours: Mapping[str, int], outlines: Mapping[float, Outline]) -> Iterator[Markup]:
    """What colours and outlines stand for."""
    y = float(TOP)
    for label, colour in colours.items():
        yield element("path", d=_circle(KEY + 8, y), class_=f"marker c{colour}")
        yield _words("label", KEY + 22, y + 4, label)
        y += LINE
    yield _segment("dense", KEY, y, KEY + 16, y)
    yield _words("label", KEY + 22, y + 4, "dense encoder")
    y += 2.5 * LINE
    yield _words("axis-name", KEY, y - LINE, "parameters gone")
    for sparsity, outline in outlines.items():
        yield element("path", d=outline(KEY + 8, y), class_="marker c6")
        yield _words("label", KEY + 22, y + 4, f"{sparsity:.0%}")
        y += LINE


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return element("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", class_=kind)


def _words(kind: str, x: float, y: float, text: str) -> Markup:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind)
