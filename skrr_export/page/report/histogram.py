"""Histograms side by side, on one logarithmic axis, so that their shapes can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from skrr_export.page.markup import Markup, element, percent, tick

_TOP, _HEIGHT = 6, 70  # of the plot, in pixels; the numbers of the axis are below it
_TICKS = 4
"""Numbers on the axis, at most."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many lie up to each bound, and above the bound before it."""

    title: str
    kind: str
    """Class that gives it its colour."""
    counts: Mapping[str, int]

    def pairs(self) -> list[tuple[float, int]]:
        """Bounds and counts, by rising bound."""
        return sorted((float(bound), count) for bound, count in self.counts.items())


def histograms(label: str, shown: Sequence[Histogram], what: str) -> Markup:
    """Draw histograms, if any of them counts anything.

    Args:
        label: what is shown, for those who do not see it.
        shown: histograms with the same bounds.
        what: is counted.
    """
    bounds = [bound for histogram in shown for bound, count in histogram.pairs() if count]
    if not bounds:
        return Markup()
    panels = (_panel(label, histogram, what, min(bounds), max(bounds)) for histogram in shown)
    return element("div", *panels, class_="panels")


def _panel(label: str, histogram: Histogram, what: str, low: float, high: float) -> Markup:
    pairs = [(bound, count) for bound, count in histogram.pairs() if low <= bound <= high]
    total = sum(count for _, count in pairs)
    largest = max((bound for bound, count in pairs if count), default=None)
    told = "nothing counted" if largest is None else f"{total:,} {what}, up to {tick(largest)}"
    picture = element(
        "svg",
        *_columns(histogram.kind, pairs, total, what),
        element("line", x1="0%", x2="100%", y1=_TOP + _HEIGHT, y2=_TOP + _HEIGHT, class_="axis"),
        *_ticks([bound for bound, _ in pairs]),
        role="img",
        aria_label=f"{label}, {histogram.title}: {told}",
    )
    return element("figure", element("figcaption", element("b", histogram.title), element("span", told)), picture)


def _columns(kind: str, pairs: Sequence[tuple[float, int]], total: int, what: str) -> Iterator[Markup]:
    """A column a bound, as high as its share of the highest."""
    most = max((count for _, count in pairs), default=0)
    for place, (bound, count) in enumerate(pairs):
        if count:
            height = max(1.0, _HEIGHT * count / most)  # a single one must be seen, too
            title = f"up to {tick(bound)}: {count:,} {what}, {percent(count / total)}"
            yield element(
                "rect",
                element("title", title),
                x=f"{100 * place / len(pairs):.2f}%",
                width=f"{100 / len(pairs):.2f}%",
                y=f"{_TOP + _HEIGHT - height:.1f}",
                height=f"{height:.1f}",
                class_=kind,
            )


def _ticks(bounds: Sequence[float]) -> Iterator[Markup]:
    """Powers of ten, each at the right edge of its column: that is its bound."""
    powers = [(place, bound) for place, bound in enumerate(bounds) if _is_power(bound)]
    stride = math.ceil(len(powers) / _TICKS)
    for place, bound in powers[:: stride or 1]:
        x = f"{100 * (place + 1) / len(bounds):.2f}%"
        yield element("line", x1=x, x2=x, y1=_TOP + _HEIGHT, y2=_TOP + _HEIGHT + 4, class_="axis")
        yield element("text", tick(bound), x=x, y=_TOP + _HEIGHT + 17, class_="tick")


def _is_power(value: float) -> bool:
    exponent = math.log10(value) if value > 0 else 0.5
    return abs(exponent - round(exponent)) < 1e-3
