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

from skrr_export.search.discrepancy import Candidate, Discrepancy

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
    stride = discrepancy.workers.size
    everyone, chunks = np.arange(len(candidates)), np.arange(run.shares.shape[1])
    first = max(2, stride)  # the null prompt, which is short and tells much, and the first prompts
    run.measure(everyone, chunks[:first])
    run.measure(run.leaders(), chunks[first:])
    for begin in range(first, len(chunks), stride):
        tick(begin / len(chunks))
        run.measure(run.alive(), chunks[begin : begin + stride])
        run.measure(run.leaders(), chunks[begin + stride :])
    discrepancy.count(candidates)
    tick(1.0)
    return run.result()


class _Race:
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
        self.shares = np.full((len(candidates), len(discrepancy.chunks)), math.nan)

    def measure(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Fill in the shares of some candidates that are not known yet."""
        columns = np.asarray([column for column in columns if np.isnan(self.shares[rows, column]).any()], dtype=int)
        if not len(rows) or not len(columns):
            return
        first = self.discrepancy.chunks.start
        chosen = [self.candidates[row] for row in rows]
        self.shares[np.ix_(rows, columns)] = self.discrepancy.shares(chosen, [first + int(c) for c in columns])

    def bounds(self) -> list[float]:
        return [math.fsum(share for share in row if not math.isnan(share)) for row in self.shares.tolist()]

    def whole(self) -> np.ndarray:
        whole: np.ndarray = ~np.isnan(self.shares).any(axis=1)
        return whole

    def threshold(self) -> float:
        """The D that a candidate must not exceed to be among the best, as far as is known."""
        best: dict[Hashable, float] = {}
        for group, bound, whole in zip(self.groups, self.bounds(), self.whole(), strict=True):
            if whole:
                best[group] = min(bound, best.get(group, math.inf))
        ranked = sorted(best.values())
        return ranked[self.keep - 1] if len(ranked) >= self.keep else math.inf

    def alive(self) -> np.ndarray:
        """Candidates that are not whole yet and may still be among the best."""
        threshold, bounds = self.threshold(), np.asarray(self.bounds())
        alive: np.ndarray = np.flatnonzero(~self.whole() & (bounds <= threshold) & (bounds < self.below))
        return alive

    def leaders(self) -> np.ndarray:
        """Of the candidates still alive those that promise to be the best: to measure them lowers the threshold.

        They are compared on the chunks that all of them have seen.
        """
        alive = self.alive()
        seen = ~np.isnan(self.shares[alive]).any(axis=0)
        ranked = np.flatnonzero(self.whole() & (np.asarray(self.bounds()) < self.below)).tolist() + alive.tolist()
        ranked.sort(key=lambda row: (math.fsum(self.shares[row, seen]), row))
        groups: list[Hashable] = []
        leaders = []
        for row in ranked:
            if self.groups[row] not in groups and len(groups) < self.keep:
                groups.append(self.groups[row])
                leaders.append(row)
        whole = self.whole()
        return np.asarray([row for row in leaders if not whole[row]], dtype=int)

    def result(self) -> list[Finish]:
        return [Finish(bound, bool(whole)) for bound, whole in zip(self.bounds(), self.whole(), strict=True)]
