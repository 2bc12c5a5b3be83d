"""A race finds what measuring everything finds, to the last bit, and measures less."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.search.discrepancy import Candidate
from skrr_export.search.race import SCOUTS, Finish, race
from tests.bundles import examples

INF = math.inf


@dataclass
class Workers:
    size: int


@dataclass
class Table:
    """Stands for a discrepancy: candidate i is the arrangement `(i,)`, and its shares are row i."""

    shares_of: np.ndarray
    size: int = 1
    first: int = 0
    """Number of the first chunk; 1 where the null prompt does not count."""
    measured: set[tuple[int, int]] = field(default_factory=set)
    calls: list[tuple[int, range]] = field(default_factory=list)
    counted: int = 0

    @property
    def workers(self) -> Workers:
        return Workers(self.size)

    @property
    def chunks(self) -> range:
        return range(self.first, self.first + self.shares_of.shape[1])

    def shares(self, candidates: Sequence[Candidate], chunks: range) -> np.ndarray:
        rows = [candidate.arrangement[0] for candidate in candidates]
        cells = {(row, chunk) for row in rows for chunk in chunks}
        assert cells.isdisjoint(self.measured), "measured twice"
        assert len(cells) == len(rows) * len(chunks) > 0
        self.measured |= cells
        self.calls.append((len(rows), chunks))
        return self.shares_of[rows][:, [chunk - self.first for chunk in chunks]]

    def count(self, candidates: Sequence[Candidate]) -> None:
        self.counted += len(candidates)

    def run(self, **options: Any) -> list[Finish]:
        rows = [Candidate((row,), 0) for row in range(len(self.shares_of))]
        return race(self, rows, **options)  # type: ignore[arg-type]


def best(finishes: Sequence[tuple[float, bool]], groups: Sequence[Hashable], keep: int, below: float) -> list[int]:
    """What those who race do with the result: the best of the best groups; of equals the earlier."""
    chosen: dict[Hashable, int] = {}
    for row in sorted(range(len(finishes)), key=lambda row: (finishes[row][0], row)):
        value, whole = finishes[row]
        if whole and value < below and len(chosen) < keep:
            chosen.setdefault(groups[row], row)
    return list(chosen.values())


def check(table: Table, groups: Sequence[Hashable] | None, keep: int, below: float) -> list[Finish]:
    """Race, and compare with what measuring everything gives."""
    told: list[float] = []
    finishes = table.run(keep=keep, groups=groups, below=below, tick=told.append)
    names = groups if groups is not None else list(range(len(table.shares_of)))
    exact = [math.fsum(row) for row in table.shares_of.tolist()]
    winners = best([(value, True) for value in exact], names, keep, below)
    assert best([(finish.bound, finish.whole) for finish in finishes], names, keep, below) == winners

    last = exact[winners[-1]] if len(winners) == keep else INF
    for row, finish in enumerate(finishes):
        seen = {chunk for number, chunk in table.measured if number == row}
        assert seen == set(table.chunks[: len(seen)])
        assert len(seen) > 0
        assert finish.whole == (len(seen) == len(table.chunks))
        assert finish.bound == math.fsum(table.shares_of[row, : len(seen)].tolist())
        if finish.whole:
            assert finish.bound == exact[row]
        else:  # it cannot be among the best, nor as good as the last of them
            assert finish.bound <= exact[row]
            assert finish.bound > last or finish.bound >= below
    assert table.counted == len(exact)
    assert told == sorted(told)
    assert not told or told[-1] == 1
    assert all(0 <= share <= 1 for share in told)
    return finishes


EIGHTHS = st.integers(0, 12).map(lambda number: number / 8)
"""Their sums are exact, and often equal."""
ANY_SHARE = st.one_of(st.floats(0, 10), st.floats(0, 1e30), st.just(INF), EIGHTHS)


@st.composite
def tables(draw: st.DrawFn, share: st.SearchStrategy[float]) -> np.ndarray:
    chunks = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(share, min_size=chunks, max_size=chunks), min_size=1, max_size=14))
    return np.asarray(rows, float)


@examples(300)
@given(
    shares=st.one_of(tables(EIGHTHS), tables(ANY_SHARE)),
    keep=st.integers(1, 4),
    below=st.one_of(st.just(INF), EIGHTHS, st.floats(0, 20)),
    number_of_groups=st.integers(0, 5),
    size=st.integers(1, 4),
    first=st.integers(0, 1),
    data=st.data(),
)
def test_any_race_finds_what_measuring_everything_finds(
    shares: np.ndarray,
    *,
    keep: int,
    below: float,
    number_of_groups: int,
    size: int,
    first: int,
    data: st.DataObject,
) -> None:
    groups = None
    if number_of_groups:
        group = st.integers(0, number_of_groups - 1)
        groups = data.draw(st.lists(group, min_size=len(shares), max_size=len(shares)))
    check(Table(shares, size, first), groups, keep, below)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 3), st.booleans())
def test_many_candidates(seed: int, keep: int, size: int, grouped: bool) -> None:
    """As in a step of a beam: 150 candidates, most of them hopeless, prompts that agree on that more or less."""
    random = np.random.default_rng(seed)
    shares = random.lognormal(0, 1.5, (150, 1)) * random.lognormal(0, 0.5, (150, 17))
    groups = random.integers(0, 60, 150).tolist() if grouped else None
    table = Table(shares, size)
    check(table, groups, keep, INF)
    assert len(table.measured) < 0.6 * shares.size


def test_nobody_races() -> None:
    table = Table(np.zeros((0, 3)))
    assert table.run() == []
    assert table.measured == set()


@pytest.mark.parametrize(("keep", "size"), [(1, 1), (2, 1), (3, 1), (1, 2), (3, 2), (2, 3)])
def test_no_more_is_measured_than_has_to_be(keep: int, size: int) -> None:
    """The first chunks tell everything: the scouts have a second look, the winners are measured whole, nobody else."""
    shares = np.repeat(10.0 ** np.arange(30)[:, None], 12, axis=1)
    table = Table(shares, size)
    check(table, None, keep, INF)
    assert len(table.measured) == 30 * size + SCOUTS * keep * size + keep * (12 - 2 * size)


def test_order_of_the_candidates_is_no_matter() -> None:
    shares = np.repeat(10.0 ** np.arange(30)[:, None], 12, axis=1)
    table = Table(np.random.default_rng(0).permutation(shares))
    check(table, None, 3, INF)
    assert len(table.measured) == 30 + 4 * 3 + 3 * 10


def test_scouts_correct_a_first_look_that_misleads() -> None:
    """On the first chunk the best three look worst of the twelve; a second look finds them out."""
    shares = np.full((40, 12), 50.0)
    shares[:12, 0] = np.linspace(1, 2, 12)
    shares[9:12, 1:] = 0.001
    table = Table(shares)
    check(table, None, 3, INF)
    assert len(table.measured) == 40 + 12 + 3 * 10


def test_of_a_group_one_is_enough() -> None:
    """The three best candidates are one group: the threshold is that of the third group."""
    shares = np.repeat(10.0 ** np.arange(12)[:, None], 6, axis=1)
    table = Table(shares)
    groups = ["a", "a", "a", "b", "c", *range(7)]
    finishes = check(table, groups, 3, INF)
    assert [finish.whole for finish in finishes] == 5 * [True] + 7 * [False]
    assert best([(finish.bound, finish.whole) for finish in finishes], groups, 3, INF) == [0, 3, 4]


TURNING = np.asarray(
    [
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],  # the best, which looks worse than the next until the third chunk
        [0.5, 0.5, 1.0, 1.0, 1.0, 1.0],
        [1.0, 1.0, 3.0, 3.0, 3.0, 3.0],  # looks good, and is not
        [2.0, 2.0, 2.0, 0.5, 0.5, 0.5],
    ]
)


def test_two_of_a_group_do_not_shut_out_another_group() -> None:
    """Both of the first group are measured whole before the third group, which is the second best, has shown itself."""
    finishes = check(Table(TURNING), ["a", "a", "b", "c"], 2, INF)
    assert [finish.whole for finish in finishes] == 4 * [True]
    assert best([(finish.bound, finish.whole) for finish in finishes], ["a", "a", "b", "c"], 2, INF) == [0, 3]


def test_the_best_of_a_group_sets_the_threshold() -> None:
    table = Table(np.vstack([TURNING[:2], [1.5, 1.5, 0.1, 0.1, 0.1, 0.1]]))
    finishes = check(table, ["a", "a", "b"], 1, INF)
    assert [finish.whole for finish in finishes] == [True, True, False]
    assert finishes[2].bound == math.fsum([1.5, 1.5, 0.1])  # above 2.0, the D of the group's best, though below 5.0


def test_whoever_is_not_below_is_given_up_at_once() -> None:
    shares = np.repeat(np.arange(1.0, 31)[:, None], 12, axis=1)
    table = Table(shares)
    finishes = check(table, None, 1, 1.0)
    assert not any(finish.whole for finish in finishes)
    assert len(table.measured) == 30  # one look at each


@pytest.mark.parametrize(("below", "whole"), [(2.0, False), (math.nextafter(2.0, INF), True)])
def test_equal_to_the_limit_is_not_below(below: float, whole: bool) -> None:
    assert check(Table(np.asarray([[2.0, 0.0, 0.0]])), None, 1, below)[0].whole == whole


def test_equals_are_all_measured_whole() -> None:
    """Whoever ranks them takes the earliest, which may be the last to be measured."""
    shares = np.asarray([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0], [4.0, 0.0, 0.0], [4.0, 0.0, 1.0]])
    finishes = check(Table(shares), None, 1, INF)
    assert [finish.whole for finish in finishes[:4]] == 4 * [True]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_process_has_a_chunk_at_every_look(size: int) -> None:
    """They share each look's chunks: one that is not a multiple would leave a process idle."""
    random = np.random.default_rng(size)
    table = Table(random.lognormal(0, 1, (50, 13)), size)
    check(table, None, 2, INF)
    for _, chunks in table.calls:
        assert chunks.start % size == 0
        assert len(chunks) % size == 0 or chunks.stop == 13


def test_sums_are_exact_in_any_order() -> None:
    """Plain sums of these depend on the order; the exact one does not."""
    shares = np.asarray([[1e16, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1e16]])
    finishes = check(Table(shares), None, 2, INF)
    assert [finish.bound for finish in finishes] == [1e16 + 4, 1e16 + 4]


def test_infinite_ones_are_not_followed() -> None:
    shares = np.ones((20, 8))
    shares[:, 0] = INF
    shares[7, 0] = 3
    table = Table(shares)
    finishes = check(table, None, 3, INF)
    assert [row for row, finish in enumerate(finishes) if finish.whole] == [7]
    assert len(table.measured) == 20 + 7
