from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from skrr_export.measure.latency import WARM_UPS, balanced, percentile_95, ratio, take_turns, variation
from skrr_export.measure.process import SubjectError
from skrr_export.measure.worker import Run

IDS = np.zeros((1, 1), np.int64)


class Fake:
    """A worker that writes down when it runs."""

    def __init__(self, name: str, order: list[str], fails_at: int | None = None) -> None:
        self.name, self.order, self.fails_at, self.runs = name, order, fails_at, 0

    def run(self, input_ids: Any, attention_mask: Any) -> Run:
        self.runs += 1
        if self.runs == self.fails_at:
            raise SubjectError("gone")
        self.order.append(self.name)
        return Run(float(self.runs), None)


def test_each_round_begins_with_another_subject() -> None:
    order: list[str] = []
    workers: Any = {name: Fake(name, order) for name in "abc"}
    seconds = take_turns(workers, IDS, None, 3, {})
    assert "".join(order[3 * WARM_UPS :]) == "acbbaccba"
    assert seconds == {name: [WARM_UPS + 1.0, WARM_UPS + 2.0, WARM_UPS + 3.0] for name in "abc"}


def test_a_subject_that_fails_is_left_out_from_then_on() -> None:
    order: list[str] = []
    workers: Any = {"a": Fake("a", order), "b": Fake("b", order, fails_at=WARM_UPS + 2)}
    failures: dict[str, str] = {}
    assert list(take_turns(workers, IDS, None, 3, failures)) == ["a"]
    assert failures == {"b": "gone"}
    assert take_turns(workers, IDS, None, 1, failures).keys() == {"a"}
    assert workers["b"].runs == WARM_UPS + 2


def test_ratios_are_of_pairs() -> None:
    base = [1.0, 10.0, 2.0]  # the machine was busy once, and both were slow
    found = ratio([2.0, 20.0, 4.0], base)
    assert (found.low, found.median, found.high) == (2, 2, 2)
    spread = ratio([1.0, 20.0, 6.0], base)
    assert spread.median == 2
    assert 1 < spread.low < 2 < spread.high < 3


def test_statistics() -> None:
    assert percentile_95([1.0, 2.0, 9.0]) == 9
    assert percentile_95(list(map(float, range(1, 101)))) == 96
    assert variation([1.0, 1.0]) == 0
    assert variation([1.0, 3.0]) == pytest.approx(0.5)


@pytest.mark.parametrize("count", range(1, 8))
def test_everybody_follows_everybody_else_equally_often(count: int) -> None:
    names = [str(number) for number in range(count)]
    rounds = [balanced(names, number) for number in range(2 * count)]
    assert all(sorted(order) == names for order in rounds)
    pairs = Counter(pair for order in rounds for pair in pairwise(order))
    assert len(pairs) == count * (count - 1)
    assert len(set(pairs.values())) <= 1


def test_a_round_of_nobody_is_empty() -> None:
    assert balanced([], 3) == []
