"""How the report writes a measured value, and one that is missing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from skrr_export.measure.record import SubjectRecord
from skrr_export.page.markup import Markup, element, number

ABSENT = "not measured"
_T = TypeVar("_T")
_MIB = 1 << 20


def cell(value: _T | None, write: Callable[[_T], str]) -> Markup:
    """A number in a table, or that there is none."""
    if value is None:
        return element("td", ABSENT, class_="n absent")
    return element("td", write(value), class_="n")


def subject_head(subject: SubjectRecord, rows: int | None = None) -> Markup:
    """The head of a subject's row, or rows, in a table."""
    name = element("code", subject.name, title=subject.title)
    return element("th", name, scope="row" if rows is None else "rowgroup", rowspan=rows)


def absent_row(subject: SubjectRecord, columns: int) -> Markup:
    """The row of a subject that has no numbers, across the columns beside its head."""
    return element("tr", subject_head(subject), element("td", reason(subject), colspan=columns, class_="absent reason"))


def group_row(text: str, columns: int) -> Markup:
    """A row that heads those below it."""
    return element("tr", element("th", text, scope="colgroup", colspan=columns), class_="group")


def reason(subject: SubjectRecord) -> str:
    """Why a subject has no numbers."""
    if subject.error is None:
        return ABSENT
    return f"{'skipped' if subject.skipped else ABSENT}: {subject.error}"


def mebibytes(size: float) -> float:
    """A size in the unit of the report's charts."""
    return size / _MIB


def mib(size: float) -> str:
    """A size in MiB, without the unit; what is small has decimals."""
    value = mebibytes(size)
    decimals = 0 if value == 0 or value >= 10 else 1
    return f"{value:,.{decimals}f}" if value == 0 or value >= 1 else number(value)


def milliseconds(seconds: float) -> str:
    """A time in ms, without the unit."""
    return number(1e3 * seconds)


def span(seconds: float) -> str:
    """A time, with the unit that suits it."""
    return f"{number(seconds)} s" if seconds >= 1 else f"{milliseconds(seconds)} ms"


def cosine(value: float) -> str:
    """A cosine; one next to 1 by what it lacks, which rounding would hide."""
    lack = 1 - value
    if not 0 < lack < 1e-2:
        return f"{min(value, 1.0):.4f}".removesuffix(".0000").replace("-", "\N{MINUS SIGN}")
    return f"1 \N{MINUS SIGN} {number(lack)}" if math.isfinite(lack) else number(value)


def size_name(batch: int, sequence: int) -> str:
    """A size of input, in words."""
    return f"{batch} \N{MULTIPLICATION SIGN} {sequence:,} tokens"
