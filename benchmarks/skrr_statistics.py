"""What a measurement of many plans on the same prompts tells: intervals by resampling, and rank correlations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Values = NDArray[np.float64]

TIMES = 2_000
"""Resamples."""
LEVEL = 0.95
"""Of every interval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and the interval that resampling gives it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, samples: Values) -> Estimate:
        """The interval that holds the middle of the samples; those that are not numbers do not count."""
        low, high = np.nanquantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high))


def resample(groups: Sequence[str], times: int = TIMES, seed: int = 0) -> NDArray[np.int64]:
    """Draw prompts again, with replacement, as many of each group as there are.

    Args:
        groups: that each prompt belongs to.
        times: how often.
        seed: of the draws; the same for all plans, so that they are compared on the same prompts.

    Returns:
        `[times, prompts]`: numbers of prompts.
    """
    random, drawn = np.random.default_rng(seed), np.empty((times, len(groups)), np.int64)
    for group in dict.fromkeys(groups):
        members = np.flatnonzero([each == group for each in groups])
        drawn[:, members] = random.choice(members, (times, len(members)))
    return drawn


def mean(values: Values, drawn: NDArray[np.int64]) -> Estimate:
    """The mean over prompts, of one number each."""
    return Estimate.of(values.mean(), values[drawn].mean(axis=1))


def spearman(one: Values, other: Values) -> Values:
    """Spearman's rank correlation along the last axis; not a number where one side is constant."""
    ranks = [rankdata(each, axis=-1) for each in (one, other)]
    centred = [each - each.mean(axis=-1, keepdims=True) for each in ranks]
    products = (centred[0] * centred[1]).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        return products / np.sqrt(np.prod([np.square(each).sum(axis=-1) for each in centred], axis=0))


def correlations(
    causes: Sequence[Values], effect: Values, times: int = TIMES, seed: int = 0
) -> list[tuple[Estimate, Estimate]]:
    """How the ranks of some numbers of plans go with those of another, and by how much less than the first's do.

    Args:
        causes: of each kind, a number a plan.
        effect: a number a plan.
        times: how often plans are drawn again, with replacement.
        seed: of the draws.

    Returns:
        For each kind the correlation; and its strength less the first one's, on the same plans.
    """
    drawn = np.random.default_rng(seed).choice(len(effect), (times, len(effect)))
    whole = [spearman(cause, effect) for cause in causes]
    samples = [spearman(cause[drawn], effect[drawn]) for cause in causes]
    return [
        (
            Estimate.of(float(value), sample),
            Estimate.of(abs(float(value)) - abs(float(whole[0])), np.abs(sample) - np.abs(samples[0])),
        )
        for value, sample in zip(whole, samples, strict=True)
    ]


def within(groups: Sequence[float], one: Values, other: Values) -> float:
    """The mean over groups of the rank correlation in each: what is left once the group is known."""
    members = [np.flatnonzero(np.equal(groups, group)) for group in dict.fromkeys(groups)]
    return float(np.mean([spearman(one[each], other[each]) for each in members]))
