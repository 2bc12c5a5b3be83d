"""How long runs take: subjects in turn, so that what else the machine does hits all alike."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from skrr_export.measure.process import SubjectError, Worker
from skrr_export.measure.record import Ratio
from skrr_export.measure.worker import Ids

UNSTEADY = 0.05
"""Coefficient of variation above which latencies say more about the machine's other work than about the subjects."""
WARM_UPS = 2
"""Runs of each size that do not count."""

Seconds = dict[str, list[float]]
"""Of every timed run, by subject."""


def take_turns(
    workers: Mapping[str, Worker], input_ids: Ids, attention_mask: Ids | None, runs: int, failures: dict[str, str]
) -> Seconds:
    """Time all subjects on one input: A B C A B C, each round beginning with another.

    Args:
        workers: the subjects, loaded.
        input_ids: `[batch, sequence]`.
        attention_mask: likewise, where the encoder takes one.
        runs: timed rounds.
        failures: subjects that cannot go on are left out from then on, and added here with the reason.
    """
    seconds: Seconds = {name: [] for name in workers}
    for number in range(-WARM_UPS, runs):
        names = [name for name in workers if name not in failures]
        first = number % max(len(names), 1)  # so that nobody always runs after the same neighbour
        for name in names[first:] + names[:first]:
            try:
                run = workers[name].run(input_ids, attention_mask)
            except SubjectError as error:
                failures[name] = str(error)
                continue
            if number >= 0:
                seconds[name].append(run.seconds)
    return {name: times for name, times in seconds.items() if name not in failures}


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """One subject's time over another's, from rounds in which both ran."""
    pairs: npt.NDArray[np.float64] = np.asarray(seconds) / np.asarray(base)
    low, median, high = np.quantile(pairs, (0.1, 0.5, 0.9)).tolist()
    return Ratio(median=median, low=low, high=high)


def percentile_95(seconds: Sequence[float]) -> float:
    """The time that 95% of the runs do not exceed; of few runs, the slowest."""
    return float(np.quantile(np.asarray(seconds), 0.95, method="higher"))


def variation(seconds: Sequence[float]) -> float:
    """The coefficient of variation."""
    return statistics.pstdev(seconds) / statistics.mean(seconds)
