"""Arrangements of sub-blocks: each operation against its definition on small cases, and the plan's own rules."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.plan import Plan
from skrr_export.search.space import (
    Arrangement,
    Item,
    Space,
    arrangement_of,
    drop,
    executed,
    first_difference,
    holes,
    kept,
    put,
)
from tests.bundles import plans
from tests.search import naive

SPACE = Space("t5", 3, (10, 30, 11, 31, 12, 32), 200)
"""All sums of units differ."""

ARRANGEMENTS = st.integers(1, 5).flatmap(plans).map(lambda sources: arrangement_of(Plan("t5", tuple(sources))))


def test_dense_runs_every_unit_in_its_place() -> None:
    assert SPACE.dense == (0, 1, 2, 3, 4, 5)
    assert SPACE.sparsity(SPACE.dense) == 0
    assert SPACE.plan(SPACE.dense, {}).is_identity


def test_layers_that_decide_nothing_are_not_in_it_and_stay() -> None:
    """Two of four layers count; of the others 60 parameters are read by nobody."""
    space = Space("t5", 4, (10, 30, 11, 31), 300, unread_parameters=60)
    assert space.dense == (0, 1, 2, 3)
    assert space.items("sub-block") == [(0,), (1,), (2,), (3,)]
    assert space.items("layer") == [(0, 1), (2, 3)]
    assert space.sparsity(space.dense) == 60 / 300
    assert space.sparsities([(1,), (2,)]) == [90 / 300, 101 / 300]
    assert space.plan((2, None, 2, 3), {}).sources == ((1, None), (1, 1), (2, 2), (3, 3))
    assert space.plan(space.dense, {}).is_identity


def test_items_are_sub_blocks_or_layers_in_the_order_in_which_they_run() -> None:
    assert SPACE.items("sub-block") == [(0,), (1,), (2,), (3,), (4,), (5,)]
    assert SPACE.items("layer") == [(0, 1), (2, 3), (4, 5)]


@pytest.mark.parametrize(
    ("arrangement", "unused"),
    [
        ((None, 1, 2, 3, 4, 5), 10),
        ((0, None, 2, 3, 4, None), 30 + 32),
        ((2, 1, 2, 3, 2, 5), 10 + 12),  # a unit that runs thrice weighs once
        ((None,) * 6, 126),
    ],
)
def test_sparsity_counts_what_no_position_uses(arrangement: Arrangement, unused: int) -> None:
    assert SPACE.sparsity(arrangement) == unused / 200


@given(st.permutations([(0,), (1,), (2,), (3,), (4,), (5,)]), st.integers(0, 6))
def test_sparsities_of_an_order(order: list[Item], count: int) -> None:
    sizes = [SPACE.unit_parameters[unit] for (unit,) in order[:count]]
    expected = [sum(sizes[: number + 1]) / 200 for number in range(count)]
    assert SPACE.sparsities(order[:count]) == pytest.approx(expected, abs=1e-15)


def test_sparsities_of_layers() -> None:
    assert SPACE.sparsities([(2, 3), (0, 1)]) == [42 / 200, 82 / 200]


@given(ARRANGEMENTS)
def test_a_plan_and_its_arrangement_say_the_same(arrangement: Arrangement) -> None:
    layers = len(arrangement) // 2
    plan = Space("t5", layers, (1,) * 2 * layers, 100).plan(arrangement, {"found": "so"})
    assert list(plan.sources) == naive.sources(arrangement)
    assert plan.provenance == {"found": "so"}
    assert arrangement_of(plan) == arrangement


@given(ARRANGEMENTS)
def test_what_runs_is_every_position_but_the_skipped(arrangement: Arrangement) -> None:
    assert list(executed(arrangement)) == [
        2 * position.source + (position.kind == "feed_forward")
        for position in Plan("t5", tuple(naive.sources(arrangement))).positions()
        if position.action != "skip"
    ]


def test_drop_takes_the_units_and_every_place_that_re_used_them() -> None:
    assert drop((0, 1, 2, 3, 4, 5), [(2,), (5,)]) == (0, 1, None, 3, 4, None)
    assert drop((2, 1, 2, 1, 2, 5), [(2,)]) == (None, 1, None, 1, None, 5)
    assert drop((2, 1, 2, 1, None, 5), [(0, 1)]) == (2, None, 2, None, None, 5)
    assert drop((0, 1), []) == (0, 1)


@given(ARRANGEMENTS, st.data())
def test_drop_leaves_a_valid_plan(arrangement: Arrangement, data: st.DataObject) -> None:
    items = data.draw(st.lists(st.integers(0, len(arrangement) - 1).map(lambda unit: (unit,)), max_size=4))
    dropped = drop(arrangement, items)
    Plan("t5", tuple(naive.sources(dropped)))  # raises where a source is not kept
    for before, after in zip(arrangement, dropped, strict=True):
        assert after == (None if (before,) in items else before)


def test_put_changes_one_position() -> None:
    assert put((0, 1, 2, 3), 0, 2) == (2, 1, 2, 3)
    assert put((0, 1, 2, 3), 3, None) == (0, 1, 2, None)
    assert put((None, 1, None, 3), 2, 2) == (None, 1, 2, 3)


@given(ARRANGEMENTS)
def test_units_are_kept_in_their_own_place_or_there_is_a_hole(arrangement: Arrangement) -> None:
    own = [position for position, unit in enumerate(arrangement) if unit == position]
    assert sorted(kept(arrangement, 0) + kept(arrangement, 1)) == own
    assert all(unit % 2 == kind for kind in (0, 1) for unit in kept(arrangement, kind))
    assert sorted(own + holes(arrangement)) == list(range(len(arrangement)))
    assert kept(arrangement, 1) == sorted(kept(arrangement, 1))


def test_first_difference_on_every_pair_of_short_arrangements() -> None:
    everything = list(product((None, 0, 2), (None, 1), (None, 2)))
    for a, b in product(everything, everything):
        different = [position for position in range(3) if a[position] != b[position]]
        assert first_difference(a, b) == min(different, default=3)
