"""Pictures of a plan: a table for the terminal, an SVG for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from skrr_export.plan import KINDS, Kind, Plan, Position

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"keep": "green", "re-use": "yellow", "skip": "dim"}

_ROW, _CELL, _TOP, _LEFT = 26, 150, 84, 150  # pixels
_TIP = 8
_WIDTH = 2 * _LEFT + 2 * _CELL + 10
_FILLS = {"keep": ("#dcefe3", "#2f7d4f", "#1d4d31"), "re-use": ("#fdf0d0", "#c98a12", "#6b4a08")}
_FILLS["skip"] = ("none", "#b8bcc4", "#8a8f99")


def describe(position: Position) -> str:
    """What happens at a position, in a word or two."""
    return {"keep": "keep", "skip": "skip", "re-use": f"re-use {position.source}"}[position.action]


def summary(plan: Plan) -> str:
    """One line: the encoder, and how many positions are kept, re-used and skipped."""
    counts = plan.counts()
    return (
        f"{plan.family}, {plan.num_layers} layers: {counts['keep']} sub-blocks kept, "
        f"{counts['re-use']} re-used, {counts['skip']} skipped"
    )


def table(plan: Plan) -> Table:
    """The plan as a table for the terminal, a row a layer."""
    from rich.table import Table

    view = Table("layer", "attention", "feed-forward", "units", title=summary(plan), title_justify="left")
    for layer in range(plan.num_layers):
        pair = [Position(layer, kind, plan.source(layer, kind)) for kind in KINDS]
        cells = [f"[{_STYLES[position.action]}]{describe(position)}[/]" for position in pair]
        view.add_row(str(layer), *cells, f"{pair[0].unit}, {pair[1].unit}")
    return view


def svg(plan: Plan) -> str:
    """The plan as a self-contained SVG: a row a layer, a cell a sub-block, an arrow from the source of a re-use."""
    height = _TOP + plan.num_layers * _ROW + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" font-family="system-ui, sans-serif" font-size="12">',
            f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
            f'<text x="{_WIDTH / 2}" y="30" text-anchor="middle" font-size="15" font-weight="600" fill="#22262e">'
            f"{escape(summary(plan))}</text>",
            *_drawing(plan),
            "</svg>\n",
        ]
    )


def inset(plan: Plan) -> str:
    """The same picture for a page: cut to what is drawn, without title and background; the page may style it."""
    left, right = (_reach(plan, kind) for kind in KINDS)
    width, height = left + 2 * _CELL + 10 + right, 30 + plan.num_layers * _ROW
    return "\n".join(
        [
            f'<svg class="plan" role="img" aria-label="{escape(summary(plan))}" '
            f'viewBox="{_LEFT - left} {_TOP - 30} {width} {height}" width="{width}" font-size="12">',
            *_drawing(plan),
            "</svg>",
        ]
    )


def _drawing(plan: Plan) -> Iterator[str]:
    yield from map(_heading, KINDS)
    yield from map(_cell, plan.positions())
    yield from _arrows(plan)


def _reach(plan: Plan, kind: Kind) -> int:
    """How far the arrows of a kind reach out beside the cells: a Bézier curve goes three quarters of its bow."""
    bows = (_bow(position) for position in plan.positions() if position.kind == kind and position.action == "re-use")
    return math.ceil(0.75 * max(bows, default=0)) + 4


def _bow(position: Position) -> int:
    assert position.source is not None
    return min(_LEFT - 10, 22 + 10 * abs(position.layer - position.source))


def _left(kind: Kind) -> int:
    return _LEFT + KINDS.index(kind) * (_CELL + 10)


def _heading(kind: Kind) -> str:
    x, name = _left(kind) + _CELL / 2, kind.replace("_", "-")
    return f'<text x="{x}" y="{_TOP - 14}" text-anchor="middle" class="heading" fill="#565c68">{name}</text>'


def _cell(position: Position) -> str:
    fill, stroke, ink = _FILLS[position.action]
    x, y = _left(position.kind), _TOP + position.layer * _ROW
    dashes = ' stroke-dasharray="4 3"' if position.action == "skip" else ""
    label = f"{position.layer}" if position.action == "keep" else f"{position.layer}: {describe(position)}"
    return (
        f'<rect x="{x}" y="{y + 2}" width="{_CELL}" height="{_ROW - 4}" rx="4" '
        f'class="{position.action}" fill="{fill}" stroke="{stroke}"{dashes}><title>unit {position.unit}</title></rect>'
        f'<text x="{x + _CELL / 2}" y="{y + _ROW / 2 + 4}" text-anchor="middle" class="{position.action}" '
        f'pointer-events="none" fill="{ink}">{label}</text>'
    )


def _arrows(plan: Plan) -> Iterator[str]:
    """Attention's arrows bow out to the left, feed-forward's to the right; a longer one bows further."""
    for position in plan.positions():
        if position.action != "re-use":
            continue
        assert position.source is not None
        side = -1 if position.kind == "attention" else 1
        x = _left(position.kind) + (_CELL if side > 0 else 0)
        start, end = (_TOP + layer * _ROW + _ROW / 2 for layer in (position.source, position.layer))
        bow = x + side * _bow(position)
        yield (
            f'<path class="arrow" d="M{x} {start}C{bow} {start} {bow} {end} {x + side * _TIP} {end}" fill="none" '
            'stroke="#c98a12" stroke-width="1.5"/>'
        )
        # no marker: its id would be every picture's on a page
        yield f'<path class="tip" d="M{x + side} {end}l{side * _TIP} -4v8z" fill="#c98a12"/>'
