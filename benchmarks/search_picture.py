"""The picture of search_quality.py: what sparsity costs under each method, as an SVG file that needs no page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files

from skrr_export.page.chart import WIDE, Line, Point, chart
from skrr_export.page.markup import Markup, element

FONT = 'svg { font: 13px system-ui, "Segoe UI", Roboto, Arial, sans-serif; background: var(--ground); }'
REUSE = " + re-use"
NO_REUSE = ", no re-use"


def picture(methods: Mapping[str, Sequence[Point]]) -> str:
    """Draw a line a method; a method without re-use has the colour of the one with it, and a thinner line.

    Args:
        methods: by the method's name, the first one to be stressed, points of sparsity and D.
    """
    families = list(dict.fromkeys(_family(name) for name in methods))
    lines = [
        Line(
            name,
            families.index(_family(name)),
            ((0.0, 0.0), *sorted(points)),
            marker=max(points),
            shown=number == 0,
            minor=name.endswith(NO_REUSE) or f"{name}{REUSE}" in methods,
        )
        for number, (name, points) in enumerate(methods.items())
    ]
    style = element("style", Markup(f"{sheets()}{FONT}"))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDE.width}" height="{WIDE.height}" '
    return chart(lines, WIDE).replace("<svg ", opening, 1).replace(">", f">{style}", 1) + "\n"


def sheets() -> str:
    """The styles of a plan's page, colours first."""
    return "".join((files("skrr_export.page") / name).read_text(encoding="utf-8") for name in ("page.css", "plan.css"))


def _family(name: str) -> str:
    return name.removesuffix(REUSE).removesuffix(NO_REUSE)
