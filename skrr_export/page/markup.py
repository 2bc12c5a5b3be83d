"""What pages are written with: HTML that nothing a user wrote can break out of, and numbers for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

_VOID = ("img",)
"""Elements that have no content, and no end."""
_TIMES, _MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Markup(str):
    """Text that is HTML already; any other text is escaped before it becomes part of a page."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str | float | None) -> Markup:
    """An element with its content.

    Args:
        name: the element's name.
        content: markup, which is taken as it is, or text, which is escaped.
        attributes: by name, where `_` stands for `-` and one at the end is dropped; those that are None are left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    end = "" if name in _VOID else f"{joined(content)}</{name}>"
    return Markup(f"<{name}{written}>{end}")


def joined(parts: Iterable[str], separator: str = "") -> Markup:
    """Parts one after the other: markup as it is, text escaped."""
    return Markup(separator.join(part if isinstance(part, Markup) else escape(part) for part in parts))


def number(value: float) -> str:
    """A number to three digits."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        return _scientific(f"{value:.2e}")
    return _minus(f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip("."))


def tick(value: float) -> str:
    """A round number, without the zeros that are not needed."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return _minus(f"{value:,.6g}")
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    return _scientific(f"{mantissa.rstrip('0').rstrip('.')}e{exponent}").removeprefix(f"1{_TIMES}")


def percent(share: float) -> str:
    """A share as a percentage, to three digits."""
    return "0%" if share == 0 else f"{number(100 * share)}%"


def column(values: Sequence[float], digits: int = 2) -> Callable[[float], str]:
    """How to write the numbers of one column: to the same decimals, so that they can be compared at a glance.

    Numbers that lie too far apart for that are written one by one.

    Args:
        values: the numbers.
        digits: of the smallest one.
    """
    sizes = [abs(value) for value in values if value]
    decimals = digits - 1 - math.floor(math.log10(min(sizes))) if sizes else 0
    if not sizes or decimals > 7 or max(sizes) >= 1e6 or max(sizes) / min(sizes) > 1e4:
        return number
    return lambda value: _minus(f"{value:,.{max(decimals, 0)}f}")


def _scientific(text: str) -> str:
    mantissa, _, exponent = text.partition("e")
    return _minus(f"{mantissa}{_TIMES}10{str(int(exponent)).translate(_SUPERSCRIPTS)}")


def _minus(text: str) -> str:
    return text.replace("-", _MINUS)
