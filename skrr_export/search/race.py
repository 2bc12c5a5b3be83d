"""The best few of many candidates, without measuring the others to their end.

A candidate's D is a sum of shares that are never negative, one a chunk of prompts. As soon as the shares measured so
far exceed what the last of the best few has in all, the rest need not be known. The result is that of measuring
everything: the same candidates, with the same D to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from skrr_export.search.discrepancy import Candidate, Discrepancy

SCOUTS = 4
"""How many times as many candidates as are wanted get a look at the prompts before the best are measured whole."""

Rows = npt.NDArray[np.int64]
"""Numbers of candidates."""

Tick = Callable[[float], None]
"""Told which share of a race is run."""


@dataclass(frozen=True, slots=True)
class Finish:
    """How far a candidate came."""

    bound: float
    """Its D if it was measured whole, else a lower bound of it."""
    whole: bool


def race(
    discrepancy: Discrepancy,
    candidates: Sequence[Candidate],
    *,
    keep: int = 1,
    groups: Sequence[Hashable] | None = None,
    below: float = math.inf,
    tick: Tick = lambda _: None,
) -> list[Finish]:
    """Measure candidates until it is certain which are the best.

    Args:
        discrepancy: measures them.
        candidates: best grouped by what they share, forks ascending, so that prefixes are computed once.
        keep: how many of the best are wanted, at most one a group.
        groups: for each candidate the group it belongs to; `None`: each its own.
        below: only candidates with a smaller D are of interest.
        tick: told how far the race is.

    Returns:
        For each candidate how far it came. The best `keep` groups' best candidates, if their D is less than `below`,
        are measured whole, and no other candidate's D is less than theirs.
    """
    run = _Race(discrepancy, candidates, keep, groups or range(len(candidates)), below)
    stride, whole = discrepancy.workers.size, len(discrepancy.chunks)
    run.measure(np.arange(len(candidates)), stride)  # the null prompt comes first: it is short, and often half of D
    run.measure(run.leaders(SCOUTS * keep), 2 * stride)
    run.measure(run.leaders(keep), whole)
    for until in range(2 * stride, whole + stride, stride):
        tick(min(until / whole, 1.0))
        run.measure(run.alive(), until)
        run.measure(run.leaders(keep), whole)
    discrepancy.count(candidates)
    return [Finish(bound, bool(seen == whole)) for bound, seen in zip(run.bounds(), run.seen, strict=True)]


class _Race:
    """Who has been measured how far."""

    def __init__(
        self,
        discrepancy: Discrepancy,
        candidates: Sequence[Candidate],
        keep: int,
        groups: Sequence[Hashable],
        below: float,
    ) -> None:
        self.discrepancy = discrepancy
        self.candidates = candidates
        self.keep = keep
        self.groups = groups
        self.below = below
        self.shares = np.zeros((len(candidates), len(discrepancy.chunks)))
        self.seen = np.zeros(len(candidates), int)
        """On how many chunks, from the first, each candidate has been measured."""

    def measure(self, rows: Rows, until: int) -> None:
        """Measure candidates on all chunks before `until` that they have not seen."""
        until = min(until, self.shares.shape[1])
        for seen in sorted(set(self.seen[rows].tolist())):
            if seen < until:
                behind = rows[self.seen[rows] == seen]
                chosen = [self.candidates[row] for row in behind]
                self.shares[behind, seen:until] = self.discrepancy.shares(chosen, self.discrepancy.chunks[seen:until])
                self.seen[behind] = until

    def bounds(self) -> list[float]:
        """For each candidate the least that its D can be."""
        return [math.fsum(shares) for shares in self.shares.tolist()]

    def threshold(self) -> float:
        """The D that a candidate must not exceed to be among the best, as far as is known."""
        best: dict[Hashable, float] = {}
        for group, bound, seen in zip(self.groups, self.bounds(), self.seen, strict=True):
            if seen == self.shares.shape[1]:
                best[group] = min(bound, best.get(group, math.inf))
        ranked = sorted(best.values())
        return ranked[self.keep - 1] if len(ranked) >= self.keep else math.inf

    def alive(self) -> Rows:
        """Candidates that are not measured whole and may still be among the best."""
        bounds = np.asarray(self.bounds())
        unfinished = self.seen < self.shares.shape[1]
        return np.flatnonzero(unfinished & (bounds <= self.threshold()) & (bounds < self.below))

    def leaders(self, count: int) -> Rows:
        """The best candidates, one a group, of those seen longest; without those already whole.

        To measure them whole lowers the threshold most.
        """
        alive = self.alive()
        longest = self.seen[alive].max(initial=0)
        rivals = [row for row in range(len(self.seen)) if self.seen[row] == self.shares.shape[1]]
        rivals += [row for row in alive.tolist() if self.seen[row] == longest]
        chosen: dict[Hashable, int] = {}
        for row in sorted(rivals, key=lambda row: (math.fsum(self.shares[row, :longest]), row)):
            if len(chosen) < count:
                chosen.setdefault(self.groups[row], row)
        return np.asarray([row for row in chosen.values() if self.seen[row] < self.shares.shape[1]], int)
