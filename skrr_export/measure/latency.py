"""How long runs take: subjects in turn, so that what else the machine does hits all alike."""

from __future__ import annotations

import statistics
import time
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
REST = 0.05
"""Seconds before each run. Thread pools spin for a while after they have worked, which costs the next subject up to 9%
on two cores (measured: ONNX Runtime in two processes, 77 tokens)."""

Seconds = dict[str, list[float]]
"""Of every timed run, by subject."""


def take_turns(
    workers: Mapping[str, Worker], input_ids: Ids, attention_mask: Ids | None, runs: int, failures: dict[str, str]
) -> Seconds:
    """Time all subjects on one input, in rounds in each of which every subject runs once.

    Args:
        workers: the subjects, loaded.
        input_ids: `[batch, sequence]`.
        attention_mask: likewise, where the encoder takes one.
        runs: timed rounds.
        failures: subjects that cannot go on are left out from then on, and added here with the reason.
    """
    seconds: Seconds = {name: [] for name in workers}
    for number in range(-WARM_UPS, runs):
        for name in balanced([name for name in workers if name not in failures], number):
            time.sleep(REST)
            try:
                run = workers[name].run(input_ids, attention_mask)
            except SubjectError as error:
                failures[name] = str(error)
                continue
            if number >= 0:
                seconds[name].append(run.seconds)
    return {name: times for name, times in seconds.items() if name not in failures}


def balanced(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: a Williams design, in which everybody follows everybody else equally often.

    That takes as many rounds as there are names, or twice as many where they are odd in number. A mere rotation would
    let each always follow the same neighbour.
    """
    count = len(names)
    zigzag = [place // 2 if place % 2 == 0 else count - 1 - place // 2 for place in range(count)]
    order = [names[(place + number) % count] for place in zigzag]
    return order[::-1] if count and number // count % 2 else order


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
