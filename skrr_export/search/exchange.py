"""Second thoughts: take a dropped item back and drop another in its stead, as long as that makes D smaller.

A beam never takes a drop back, though the drops after it may have made it the wrong one. This is the last part of
`skrr+`; the paper has nothing like it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from skrr_export.search.beam import filled
from skrr_export.search.discrepancy import Candidate, Discrepancy
from skrr_export.search.journal import Journal
from skrr_export.search.race import Tick, race
from skrr_export.search.space import Arrangement, Item, drop, first_difference, put


@dataclass(frozen=True, slots=True)
class Exchange:
    """One item back in its place, and one dropped; or none dropped, where the plan stays sparse enough."""

    back: Item
    gone: Item | None
    arrangement: Arrangement


def exchange(
    discrepancy: Discrepancy,
    arrangement: Arrangement,
    value: float,
    items: list[Item],
    allowed: Callable[[Arrangement], bool],
    *,
    journal: Journal,
    name: str,
    report: Callable[[int, float], Tick],
) -> tuple[Arrangement, float, list[Exchange]]:
    """Make the best exchange, again and again, until none makes D smaller.

    Args:
        discrepancy: what is to become smaller.
        arrangement: what runs now.
        value: its D.
        items: everything that can be dropped.
        allowed: whether an arrangement is sparse enough.
        journal: keeps each decision.
        name: of these exchanges, in the journal.
        report: called before each exchange with how many were made, and D.

    Returns:
        The arrangement, its D, and the exchanges made.
    """
    made: list[Exchange] = []
    for number in itertools.count(1):
        tick = report(len(made), value)
        options = [each for each in _exchanges(arrangement, items) if allowed(each.arrangement)]

        def decide(options: list[Exchange] = options, now: Arrangement = arrangement, value: float = value) -> Any:
            candidates = [Candidate(each.arrangement, first_difference(each.arrangement, now)) for each in options]
            finishes = race(discrepancy, candidates, below=value, tick=tick)  # noqa: B023 - called at once
            better = [(finish.bound, row) for row, finish in enumerate(finishes) if finish.whole]
            return min(better) if better and min(better)[0] < value else None

        found = journal.remember(f"{name} {number}", decide)
        if found is None:
            break
        value, row = found
        arrangement = options[row].arrangement
        made.append(options[row])
    return arrangement, value, made


def _exchanges(arrangement: Arrangement, items: list[Item]) -> Iterator[Exchange]:
    kept = [item for item in items if all(arrangement[unit] == unit for unit in item)]
    for back in items:
        if back in kept:
            continue
        restored = arrangement
        for unit in back:
            restored = put(restored, unit, unit)
        yield Exchange(back, None, restored)
        for gone in kept:
            dropped = drop(restored, [gone])
            for option in (dropped, *filled(restored, dropped, gone)):
                yield Exchange(back, gone, option)
