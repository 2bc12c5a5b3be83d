"""Re-use is Algorithm 2 of the paper, as a plain loop in which transformers runs every candidate; sweeps reach an end.

Tolerance: relative, of D, as in tests/search/test_discrepancy.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.plan import Plan
from skrr_export.search.discrepancy import Candidate
from skrr_export.search.journal import Journal
from skrr_export.search.reuse import every, fill, nearest, sweep
from skrr_export.search.space import Arrangement, executed
from tests.bundles import plans, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.search import naive
from tests.search.naive import Truth
from tests.search.subjects import ALONE, MASKED, PROMPTS, UNMASKED, Subject, edit, journal, relate, subject

TOLERANCE = 1e-5

Case = tuple[Subject, Truth]
Cases = Callable[..., Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """The product and the truth on the same weights, whose layers resemble each other so that re-use pays."""

    @cache
    def make(family: str, layers: int, seed: int = 0, preset: Any = MASKED) -> Case:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            checkpoint = relate(bert_checkpoint(directory, layers=layers, tokenizer=True, seed=seed))
        else:
            checkpoint = relate(soften(t5_checkpoint(directory, layers=layers, tokenizer=True, seed=seed)))
        return subject(checkpoint, preset), Truth(checkpoint, PROMPTS, preset)

    return make


def measure(tested: Subject, arrangement: Arrangement) -> float:
    return tested.discrepancy.exact([Candidate(arrangement, 0)])[0].value


def run(
    tested: Subject, order: list[int], choices: Any = nearest, kept_in: Journal | None = None, report: Any = None
) -> tuple[Arrangement, float]:
    """Fill, or with `every` sweep, what an order leaves."""
    start = naive.without(2 * tested.space.num_layers, [(unit,) for unit in order])
    common = {
        "journal": kept_in or journal(), "name": "test", "report": report or (lambda done, value: None),
    }  # fmt: skip
    if choices is every:
        return sweep(tested.discrepancy, start, measure(tested, start), order, **common)
    return fill(tested.discrepancy, start, measure(tested, start), order, choices, **common)


ORDERS = [[4], [7, 3], [6, 5, 4], [2, 4, 7, 5], [5, 0, 3, 6], [1, 3, 5, 6, 4], [0, 2, 4, 6, 1, 3]]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_algorithm_2(order: list[int], cases: Cases) -> None:
    tested, truth = cases("t5", 4)
    arrangement, value = run(tested, order)
    expected, lowest = naive.reuse(truth, 8, order)
    assert arrangement == expected
    assert value == pytest.approx(lowest, rel=TOLERANCE)


@pytest.mark.parametrize("order", [[4], [2, 1], [5, 4, 0], [3, 1, 2], [0, 3, 4]], ids=str)
def test_algorithm_2_on_bert(order: list[int], cases: Cases) -> None:
    tested, truth = cases("bert", 3)
    arrangement, value = run(tested, order)
    expected, lowest = naive.reuse(truth, 6, order)
    assert arrangement == expected
    assert value == pytest.approx(lowest, rel=TOLERANCE)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_algorithm_2_in_a_pipeline_without_a_mask(seed: int, cases: Cases) -> None:
    tested, truth = cases("t5", 4, seed, UNMASKED)
    assert run(tested, [6, 5, 2])[0] == naive.reuse(truth, 8, [6, 5, 2])[0]


def test_the_cases_above_re_use_and_skip(cases: Cases) -> None:
    """Else they would prove little: both neighbours are taken somewhere, and somewhere neither."""
    found = set()
    for order in ORDERS:
        arrangement, _ = naive.reuse(cases("t5", 4)[1], 8, order)
        found |= {None if arrangement[unit] is None else arrangement[unit] < unit for unit in order}
    assert found == {None, True, False}


def _twins(weights: dict[str, torch.Tensor]) -> None:
    """Layer 2 is layer 1 again."""
    for name in list(weights):
        if name.startswith("encoder.block.1."):
            weights[name.replace("block.1.", "block.2.")] = weights[name].clone()


@pytest.mark.parametrize("choices", [nearest, every])
@pytest.mark.parametrize("order", [[2], [3], [4], [5], [4, 5], [5, 2]], ids=str)
def test_a_copy_of_a_layer_takes_its_place_and_nothing_is_lost(order: list[int], choices: Any, tmp_path: Path) -> None:
    checkpoint = edit(soften(t5_checkpoint(tmp_path, layers=4, tokenizer=True)), _twins)
    tested = subject(checkpoint)
    assert measure(tested, naive.without(8, [(unit,) for unit in order])) > 0.01
    arrangement, value = run(tested, order, choices)
    assert value < 1e-10
    twins = {4: 2, 5: 3, 2: 4, 3: 5}
    assert arrangement == tuple(twins[unit] if unit in order else unit for unit in range(8))


@pytest.mark.parametrize("family", ["t5", "bert"])
@pytest.mark.parametrize("order", [[4, 3], [5, 2, 1], [0, 4, 3]], ids=str)
def test_a_sweep_ends_where_no_single_change_is_better(family: str, order: list[int], cases: Cases) -> None:
    tested, truth = cases(family, 3)
    values: list[float] = []
    arrangement, value = run(tested, order, every, report=lambda done, value: values.append(value))
    assert value == pytest.approx(truth(arrangement), rel=TOLERANCE)
    changes = list(naive.single_changes(arrangement))
    assert len(changes) >= len(order)
    for change in changes:
        assert truth(change) >= value * (1 - TOLERANCE)
    assert values == sorted(values, reverse=True)
    assert values[-1] == value
    assert len(values) % len(order) == 0
    assert values[-len(order) :] == [value] * len(order)  # the last pass changed nothing
    Plan("t5", tuple(naive.sources(arrangement)))  # raises where a source is not kept
    assert set(range(6)) - set(arrangement) == set(order)


def test_a_sweep_is_never_worse_than_one_pass_of_it(cases: Cases) -> None:
    tested, _ = cases("t5", 4)
    for order in ORDERS:
        start = naive.without(8, [(unit,) for unit in order])
        _, once = fill(
            tested.discrepancy,
            start,
            measure(tested, start),
            order,
            every,
            journal=journal(),
            name="",
            report=lambda done, value: None,
        )
        assert run(tested, order, every)[1] <= once <= measure(tested, start)


def _idle(weights: dict[str, torch.Tensor]) -> None:
    """Layer 1's attention adds nothing, so any other in its place does harm."""
    weights["encoder.block.1.layer.0.SelfAttention.o.weight"].zero_()


def test_what_is_better_without_stays_without(tmp_path: Path) -> None:
    tested = subject(edit(soften(t5_checkpoint(tmp_path, tokenizer=True)), _idle))
    for choices in (nearest, every):
        assert run(tested, [2], choices) == ((0, 1, None, 3, 4, 5), 0.0)


def test_a_sweep_takes_back_what_does_harm(tmp_path: Path) -> None:
    tested = subject(edit(soften(t5_checkpoint(tmp_path, tokenizer=True)), _idle))
    for start in ((0, 1, 0, 3, 4, 5), (0, 1, 4, 3, 4, 5)):
        assert measure(tested, start) > 0.01
        found = sweep(
            tested.discrepancy,
            start,
            measure(tested, start),
            [2],
            journal=journal(),
            name="",
            report=lambda done, value: None,
        )
        assert found == ((0, 1, None, 3, 4, 5), 0.0)


@pytest.mark.parametrize(
    ("arrangement", "position", "expected"),
    [
        ((0, 1, None, 3, 4, 5), 2, [0, 4]),
        ((0, 1, None, None, 4, 5), 3, [1, 5]),
        ((None, 1, 2, 3, 4, 5), 0, [2]),
        ((0, 1, 2, 3, 4, None), 5, [3]),
        ((0, 1, None, 3, None, 5), 2, [0]),
        ((None, 1, None, 3, 4, 5), 2, [4]),
        ((None, 1, None, 3, None, 5), 2, []),
        ((0, 1, 0, 3, 4, 5), 2, [0, 4]),  # what runs there now is for the caller to leave out
        ((0, 1, 0, 3, None, 5), 4, [0]),  # layer 1 re-uses: its own attention is not kept
    ],
)
def test_the_nearest_kept_of_the_kind(arrangement: Arrangement, position: int, expected: list[int]) -> None:
    assert nearest(arrangement, position) == expected


@given(st.integers(1, 6).flatmap(plans), st.data())
def test_every_kept_of_the_kind_and_nothing(sources: Any, data: st.DataObject) -> None:
    layers = [layer for pair in sources for layer in pair]
    arrangement = tuple(None if layer is None else 2 * layer + at % 2 for at, layer in enumerate(layers))
    position = data.draw(st.integers(0, len(arrangement) - 1))
    same = [unit for unit in arrangement if unit is not None and unit % 2 == position % 2]
    choices = every(arrangement, position)
    assert set(choices) == {None, *same}
    assert len(choices) == len(set(choices))
    assert set(nearest(arrangement, position)) <= set(same)


def test_a_single_choice_that_runs_already_is_not_measured(cases: Cases) -> None:
    tested, _ = cases("t5", 3)
    before = tested.engine.evaluated
    arrangement = (2, 1, 2, 3, None, 5)
    found = fill(
        tested.discrepancy,
        arrangement,
        1.0,
        [0],
        nearest,
        journal=journal(),
        name="",
        report=lambda done, value: None,
    )
    assert found == (arrangement, 1.0)
    assert tested.engine.evaluated == before


def test_progress_is_told(cases: Cases) -> None:
    told: list[tuple[int, float]] = []
    _, value = run(cases("t5", 4)[0], [6, 5, 4], report=lambda *what: told.append(what))
    assert [done for done, _ in told] == [1, 2, 3]
    assert told[-1][1] == value


@pytest.mark.parametrize("choices", [nearest, every])
def test_decisions_on_record_are_not_taken_again(choices: Any, cases: Cases, tmp_path: Path) -> None:
    tested, _ = cases("t5", 4)
    with Journal(tmp_path / "journal", {}, ALONE, resume=False) as first:
        found = run(tested, [6, 5, 4], choices, first)
    assert found == run(tested, [6, 5, 4], choices)
    assert len(executed(found[0])) > 5
    with Journal(tmp_path / "journal", {}, ALONE, resume=True) as second:
        measure(tested, naive.without(8, [(4,), (5,), (6,)]))
        before = tested.discrepancy.naive
        assert run(tested, [6, 5, 4], choices, second) == found
        assert tested.discrepancy.naive - before == 5 * sum(chunk.size for chunk in tested.engine.chunks)  # the start's
