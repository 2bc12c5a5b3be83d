"""Orders to compare with: evenly spread, shuffled by the seed alone, and by block influence as transformers has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.search.baselines import random_order, shortgpt_order, uniform_order
from tests.bundles import soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.search import naive
from tests.search.subjects import ALONE, CPU, KINDS, PROMPTS, edit, subject

Checkpoints = Callable[[str, int], Path]


def units(count: int) -> list[tuple[int, ...]]:
    return [(unit,) for unit in range(count)]


@given(st.integers(1, 96))
def test_every_prefix_is_spread_evenly(count: int) -> None:
    order = uniform_order(units(count))
    assert sorted(order) == units(count)
    for dropped in range(1, count + 1):
        marks = sorted([-1, count, *(unit for (unit,) in order[:dropped])])
        gaps = [right - left for left, right in pairwise(marks)]
        assert max(gaps) <= 2 * min(gaps) + 1  # as even as halving the widest gap again and again can be


@pytest.mark.parametrize("halvings", [1, 2, 3, 4, 5, 6])
def test_gaps_are_equal_where_they_can_be(halvings: int) -> None:
    count = 2**halvings - 1
    order = uniform_order(units(count))
    for power in range(1, halvings + 1):
        marks = sorted([-1, count, *(unit for (unit,) in order[: 2**power - 1])])
        assert {right - left for left, right in pairwise(marks)} == {2 ** (halvings - power)}


def test_uniform_orders_that_can_be_checked_by_eye() -> None:
    assert uniform_order(units(7)) == [(3,), (1,), (5,), (0,), (2,), (4,), (6,)]
    assert uniform_order([(0, 1), (2, 3), (4, 5)]) == [(2, 3), (0, 1), (4, 5)]
    assert uniform_order(units(2)) == [(0,), (1,)]
    assert uniform_order([]) == []


@given(st.integers(1, 50), st.integers(0, 2**32))
def test_the_seed_decides_a_shuffle_and_nothing_else(count: int, seed: int) -> None:
    items = units(count)
    order = random_order(items, seed)
    assert sorted(order) == items == units(count)
    assert order == random_order(items, seed)
    # The same places, whatever the items are.
    assert [(item[0] // 2,) for item in random_order([(2 * at, 2 * at + 1) for at in range(count)], seed)] == order


def test_every_order_is_as_likely() -> None:
    counts: dict[Any, int] = {}
    for seed in range(600):
        order = tuple(random_order(units(3), seed))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 6
    assert 60 < min(counts.values()) <= max(counts.values()) < 145  # 100, give or take five standard deviations


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str, seed: int) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            return bert_checkpoint(directory, layers=4, tokenizer=True, seed=seed)

        def calm(weights: dict[str, torch.Tensor]) -> None:
            """Random layers matter less and less: of these two, the later one more."""
            for name, value in weights.items():
                if name.startswith(f"encoder.block.{seed}.") and name.endswith(("o.weight", "wo.weight")):
                    value.mul_(0.1)

        return edit(soften(t5_checkpoint(directory, layers=4, tokenizer=True, seed=seed)), calm)

    return make


def layers_by_influence(influences: list[float]) -> list[tuple[int, int]]:
    return [(2 * layer, 2 * layer + 1) for layer in sorted(range(len(influences)), key=influences.__getitem__)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("preset", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_block_influence_is_that_of_transformers(family: str, preset: Any, seed: int, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints(family, seed)
    tested = subject(checkpoint, preset)
    order = shortgpt_order(tested.engine, ALONE, tested.space.items("layer"), tested.space.dense)
    assert order == layers_by_influence(naive.block_influence(checkpoint, PROMPTS, preset))


def test_the_orders_above_are_not_all_the_same(checkpoints: Checkpoints) -> None:
    for family in ("t5", "bert"):
        orders = {
            tuple(layers_by_influence(naive.block_influence(checkpoints(family, seed), PROMPTS, KINDS["masked"])))
            for seed in range(3)
        }
        assert len(orders) > 1


@dataclass
class Half:
    """One of two processes; keeps what it would tell the other."""

    rank: int
    size: int = 2
    device: torch.device = CPU
    told: list[np.ndarray] = field(default_factory=list)

    def gather(self, values: Any) -> Any:
        self.told.append(values)
        return values


def test_each_token_counts_as_much_as_any_other_and_once(checkpoints: Checkpoints) -> None:
    """The sums of two processes, over all prompts and without the null prompt: the mean over all tokens."""
    checkpoint = checkpoints("bert", 0)
    halves = [Half(0), Half(1)]
    for half in halves:
        tested = subject(checkpoint)
        shortgpt_order(tested.engine, half, tested.space.items("layer"), tested.space.dense)  # type: ignore[arg-type]
    [one], [other] = (half.told for half in halves)
    assert (one * other == 0).all()
    cosines = (one + other).sum(axis=1) / sum(chunk.rows for chunk in tested.engine.chunks[1:])
    expected = naive.block_influence(checkpoint, PROMPTS, KINDS["masked"])
    np.testing.assert_allclose(1 - cosines, expected, rtol=1e-5)  # fp32 states, as in tests/encoders/test_eager.py
