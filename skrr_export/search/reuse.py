"""What runs in the place of a dropped unit: Algorithm 2 of the paper, and sweeps over every kept unit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from skrr_export.search.discrepancy import Candidate, Discrepancy
from skrr_export.search.journal import Journal
from skrr_export.search.race import race
from skrr_export.search.space import Arrangement, kept, put

Report = Callable[[int, float], None]


Choices = Callable[[Arrangement, int], list[int | None]]
"""What might run in a place, as things stand."""


def nearest(arrangement: Arrangement, position: int) -> list[int | None]:
    """The nearest kept unit of the kind on each side, the left one first: the paper's candidates."""
    units = kept(arrangement, position % 2)
    left = [unit for unit in units if unit < position][-1:]
    right = [unit for unit in units if unit > position][:1]
    return [*left, *right]


def every(arrangement: Arrangement, position: int) -> list[int | None]:
    """Every kept unit of the kind, and nothing."""
    return [None, *kept(arrangement, position % 2)]


def fill(
    discrepancy: Discrepancy,
    arrangement: Arrangement,
    value: float,
    positions: Sequence[int],
    choices: Choices,
    *,
    journal: Journal,
    name: str,
    report: Report,
) -> tuple[Arrangement, float]:
    """Go through dropped units once, each time taking the choice that makes D smallest, if it makes it smaller.

    Args:
        discrepancy: what is to become smaller.
        arrangement: what runs now.
        value: its D.
        positions: the dropped units, in the order in which they are looked at.
        choices: what to try in a place.
        journal: keeps each decision.
        name: of this pass, in the journal.
        report: called after each decision with how many are taken, and D.

    Returns:
        The arrangement, and its D.
    """
    for done, position in enumerate(positions):
        options = [unit for unit in choices(arrangement, position) if unit != arrangement[position]]

        def decide(arrangement: Arrangement = arrangement, value: float = value, at: int = position) -> Any:
            return _best(discrepancy, arrangement, value, at, options)  # noqa: B023 - called at once

        found = journal.remember(f"{name}: {position}", decide)
        if found is not None:
            source, value = found
            arrangement = put(arrangement, position, source)
        report(done + 1, value)
    return arrangement, value


def sweep(
    discrepancy: Discrepancy,
    arrangement: Arrangement,
    value: float,
    positions: Sequence[int],
    *,
    journal: Journal,
    name: str,
    report: Report,
) -> tuple[Arrangement, float]:
    """Fill from every kept unit, again and again, until a whole pass changes nothing. D falls with every change."""
    for number in itertools.count(1):
        before = arrangement
        arrangement, value = fill(
            discrepancy,
            arrangement,
            value,
            positions,
            every,
            journal=journal,
            name=f"{name}, sweep {number}",
            report=report,
        )
        if arrangement == before:
            break
    return arrangement, value


def _best(
    discrepancy: Discrepancy, arrangement: Arrangement, value: float, position: int, options: Sequence[int | None]
) -> tuple[int | None, float] | None:
    if not options:
        return None
    candidates = [Candidate(put(arrangement, position, unit), position) for unit in options]
    finishes = race(discrepancy, candidates, below=value)
    better = [(finish.bound, row) for row, finish in enumerate(finishes) if finish.whole and finish.bound < value]
    if not better:
        return None
    bound, row = min(better)
    return options[row], bound
