"""The goal of a search: a sparsity, and how much of an order has to be dropped to reach it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from skrr_export.errors import InputError, PlanError

PRINTED = 0.0005
"""Half a step of a printed sparsity: a prefix of 41.86% is the one that is printed, and asked for, as 41.9%."""

_ROUNDING = 1e-9  # far more than the subtraction loses, far less than a unit of any encoder weighs

_NUMBER = re.compile(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def reaches(sparsity: float, wanted: float) -> bool:
    """Whether a sparsity is the wanted one or more, to the precision in which sparsities are printed."""
    return sparsity >= wanted - PRINTED - _ROUNDING


def units_needed(sparsities: Sequence[float], wanted: float) -> int:
    """How much of an order to drop, at least, so that a sparsity is reached.

    Args:
        sparsities: the sparsity after dropping the first unit of the order, the first two, and so on; never falling.
        wanted: the sparsity to reach, taken to the precision in which sparsities are printed, a tenth of a per cent.

    Raises:
        PlanError: no prefix reaches it, or it is not above 0 and below 1.
    """
    if not sparsities:
        raise PlanError("no sparsity can be reached: there is nothing to drop")
    if math.isnan(wanted):
        raise PlanError(f"a sparsity is a number, not nan; {sparsities[0]:.1%} to {sparsities[-1]:.1%} can be reached")
    if 0 < wanted < 1:
        for dropped, sparsity in enumerate(sparsities, start=1):
            if reaches(sparsity, wanted):
                return dropped
    nearest = sparsities[0] if wanted <= 0 else sparsities[-1]
    digits = 3 if f"{wanted:.1%}" == f"{nearest:.1%}" else 1
    raise PlanError(f"sparsity {wanted:.{digits}%} cannot be reached: the nearest is {nearest:.{digits}%}")


def parse_sparsities(text: str) -> tuple[float, ...]:
    """Read a comma-separated list of sparsities, `"0.25,0.33,0.42"`; the order is kept.

    Raises:
        InputError: an item is not a number above 0 and below 1, or stands twice.
    """
    sparsities = [_sparsity(item.strip()) for item in text.split(",")]
    repeated = [sparsity for index, sparsity in enumerate(sparsities) if sparsity in sparsities[:index]]
    if repeated:
        raise InputError(f"sparsity {repeated[0]} stands twice in {text!r}")
    return tuple(sparsities)


def _sparsity(item: str) -> float:
    if not _NUMBER.fullmatch(item):
        raise InputError(f"{item!r} is not a sparsity, a number above 0 and below 1 such as 0.42")
    if not 0 < float(item) < 1:
        raise InputError(f"sparsity {item} is out of range: it is a share above 0 and below 1, such as 0.42 for 42%")
    return float(item)
