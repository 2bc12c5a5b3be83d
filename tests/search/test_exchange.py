"""Exchanges find the better plan that was planted, and end where no single one makes D smaller.

Tolerance: relative, of D, as in tests/search/test_discrepancy.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from skrr_export.plan import Plan
from skrr_export.search.discrepancy import Candidate
from skrr_export.search.exchange import Exchange, exchange
from skrr_export.search.goal import reaches
from skrr_export.search.journal import Journal
from skrr_export.search.space import Arrangement
from tests.bundles import soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.search import naive
from tests.search.naive import Truth
from tests.search.subjects import ALONE, MASKED, PROMPTS, Subject, edit, journal, relate, subject

TOLERANCE = 1e-5

Case = tuple[Subject, Truth]
Cases = Callable[..., Case]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    @cache
    def make(family: str, layers: int = 3, seed: int = 0) -> Case:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            checkpoint = bert_checkpoint(directory, layers=layers, tokenizer=True, seed=seed)
        else:
            checkpoint = relate(soften(t5_checkpoint(directory, layers=layers, tokenizer=True, seed=seed)))
        return subject(checkpoint), Truth(checkpoint, PROMPTS, MASKED)

    return make


def run(
    tested: Subject,
    arrangement: Arrangement,
    allowed: Callable[[Arrangement], bool],
    *,
    grain: Any = "sub-block",
    kept_in: Journal | None = None,
    report: Any = None,
) -> tuple[Arrangement, float, list[Exchange]]:
    [terms] = tested.discrepancy.exact([Candidate(arrangement, 0)])
    return exchange(
        tested.discrepancy,
        arrangement,
        terms.value,
        tested.space.items(grain),
        allowed,
        journal=kept_in or journal(),
        name="test",
        report=report or (lambda made, value: lambda share: None),
    )


def sparse(tested: Subject, wanted: float) -> Callable[[Arrangement], bool]:
    return lambda arrangement: reaches(tested.space.sparsity(arrangement), wanted)


def as_many(arrangement: Arrangement) -> Callable[[Arrangement], bool]:
    """As many units unused as now."""
    units = set(range(len(arrangement)))
    return lambda other: len(units - set(other)) >= len(units - set(arrangement))


def _idle(layer: int) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[f"encoder.block.{layer}.layer.0.SelfAttention.o.weight"].zero_()
        weights[f"encoder.block.{layer}.layer.1.DenseReluDense.wo.weight"].zero_()

    return change


def test_a_planted_exchange_is_found(tmp_path: Path) -> None:
    """Layer 1 adds nothing, yet layer 0's feed-forward was dropped: feed-forward for feed-forward, D becomes 0."""
    tested = subject(edit(soften(t5_checkpoint(tmp_path, tokenizer=True)), _idle(1)))
    bad = naive.without(6, [(1,)])
    arrangement, value, made = run(tested, bad, sparse(tested, tested.space.sparsity(bad)))
    assert (arrangement, value) == (naive.without(6, [(3,)]), 0.0)
    assert made == [Exchange((1,), (3,), arrangement)]


def test_a_planted_exchange_of_layers_is_found(tmp_path: Path) -> None:
    tested = subject(edit(soften(t5_checkpoint(tmp_path, tokenizer=True)), _idle(1)))
    for bad in ((0, 1), (4, 5)):
        arrangement, value, made = run(tested, naive.without(6, [bad]), as_many(naive.without(6, [bad])), grain="layer")
        assert (arrangement, value) == (naive.without(6, [(2, 3)]), 0.0)
        assert made == [Exchange(bad, (2, 3), arrangement)]


def test_a_drop_that_is_not_needed_is_taken_back(cases: Cases) -> None:
    tested, _ = cases("t5")
    everything = naive.without(6, [(1,), (4,)])
    arrangement, value, made = run(tested, everything, lambda _: True)
    assert (arrangement, value) == (tested.space.dense, 0.0)
    assert [each.gone for each in made] == [None, None]
    assert sorted(each.back for each in made) == [(1,), (4,)]


STARTS = [(0, 1), (0, 3), (1, 2), (3, 5), (0, 1, 4), (0, 2, 3)]


@pytest.mark.parametrize("family", ["t5", "bert"])
@pytest.mark.parametrize("units", STARTS, ids=str)
def test_the_end_is_where_no_exchange_is_better(family: str, units: tuple[int, ...], cases: Cases) -> None:
    tested, truth = cases(family)
    start = naive.without(6, [(unit,) for unit in units])
    allowed = sparse(tested, tested.space.sparsity(start))
    told: list[float] = []

    def report(made: int, value: float) -> Callable[[float], None]:
        assert made == len(told)
        told.append(value)
        return lambda share: None

    arrangement, value, made = run(tested, start, allowed, report=report)
    assert value == pytest.approx(truth(arrangement), rel=TOLERANCE)
    better = [each for each in naive.single_exchanges(arrangement) if allowed(each)]
    assert len(better) > 1
    assert min(map(truth, better)) >= value * (1 - TOLERANCE)
    assert told[-1] == value
    assert all(after < before for before, after in itertools.pairwise(told))
    for each in made:
        assert allowed(each.arrangement)
        Plan("t5", tuple(naive.sources(each.arrangement)))  # raises where a source is not kept
    assert len(told) == len(made) + 1
    # What is dropped in the end is what was, less what came back, and what went.
    dropped = [(unit,) for unit in units]
    for each in made:
        dropped.remove(each.back)
        dropped += [each.gone] if each.gone else []
    assert set(range(6)) - set(arrangement) == {unit for item in dropped for unit in item}


def test_some_of_the_starts_above_are_left(cases: Cases) -> None:
    for family in ("t5", "bert"):
        tested, _ = cases(family)
        starts = [naive.without(6, [(unit,) for unit in units]) for units in STARTS]
        ends = [run(tested, start, sparse(tested, tested.space.sparsity(start))) for start in starts]
        assert sum(len(made) > 0 for _, _, made in ends) >= 3
    assert max(len(made) for _, _, made in ends) >= 1


def test_the_first_exchange_is_the_best_of_all(cases: Cases) -> None:
    """Over every unit back, every unit gone, and every neighbour in the places of what went."""
    tested, truth = cases("t5")
    start = naive.without(6, [(0,), (3,)])
    allowed = sparse(tested, tested.space.sparsity(start))
    best = min(truth(each) for each in _all_exchanges(start) if allowed(each))
    _, _, made = run(tested, start, allowed)
    assert truth(made[0].arrangement) == pytest.approx(best, rel=TOLERANCE)


def _all_exchanges(arrangement: Arrangement) -> list[Arrangement]:
    """Of an arrangement without re-use."""
    found = list(naive.single_exchanges(arrangement))
    for each in list(found):
        gone = [unit for unit in range(6) if arrangement[unit] == unit and each[unit] is None]
        if gone:
            same = [unit for unit in range(gone[0] % 2, 6, 2) if each[unit] == unit]
            left, right = [it for it in same if it < gone[0]][-1:], [it for it in same if it > gone[0]][:1]
            found += [(*each[: gone[0]], other, *each[gone[0] + 1 :]) for other in left + right]
    return found


def test_what_re_used_the_unit_that_goes_does_not_run_it_any_more(cases: Cases) -> None:
    tested, _ = cases("bert")
    start: Arrangement = (0, 1, 0, 3, 0, 5)
    allowed = as_many(start)
    arrangement, value, made = run(tested, start, allowed)
    assert made
    Plan("bert", tuple(naive.sources(arrangement)))
    assert allowed(arrangement)
    assert value < tested.discrepancy.exact([Candidate(start, 0)])[0].value


def test_nothing_is_exchanged_where_nothing_is_dropped(cases: Cases) -> None:
    tested, _ = cases("t5")
    assert run(tested, tested.space.dense, lambda _: True) == (tested.space.dense, 0.0, [])


def test_nothing_is_exchanged_where_nothing_else_is_allowed(cases: Cases) -> None:
    tested, truth = cases("t5")
    start = naive.without(6, [(0,), (1,)])
    arrangement, value, made = run(tested, start, lambda each: False)
    assert (arrangement, made) == (start, [])
    assert value == pytest.approx(truth(start), rel=TOLERANCE)


def test_exchanges_on_record_are_not_sought_again(cases: Cases, tmp_path: Path) -> None:
    tested, _ = cases("t5")
    start = naive.without(6, [(0,), (3,)])
    allowed = sparse(tested, tested.space.sparsity(start))
    with Journal(tmp_path / "journal", {}, ALONE, resume=False) as first:
        found = run(tested, start, allowed, kept_in=first)
    assert found[2]
    with Journal(tmp_path / "journal", {}, ALONE, resume=True) as second:
        [terms] = tested.discrepancy.exact([Candidate(start, 0)])
        once = tested.discrepancy.naive
        tested.discrepancy.exact([Candidate(start, 0)])
        once = tested.discrepancy.naive - once
        before = tested.discrepancy.naive
        assert run(tested, start, allowed, kept_in=second) == found
        assert tested.discrepancy.naive - before == once  # the start's own D
    assert terms.value > found[1]
