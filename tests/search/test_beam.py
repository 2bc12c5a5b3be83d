"""The beam is Algorithm 1 of the paper: as a plain loop in which transformers runs every candidate, and by hand.

Tolerance: relative, of D, as in tests/search/test_discrepancy.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from skrr_export.errors import InputError
from skrr_export.plan import Plan
from skrr_export.search.beam import State, Step, beam_search, filled
from skrr_export.search.discrepancy import Candidate
from skrr_export.search.journal import Journal
from skrr_export.search.space import Arrangement, Item, drop, executed, kept
from tests.bundles import soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.search import naive
from tests.search.naive import Truth
from tests.search.subjects import ALONE, KINDS, MASKED, PROMPTS, UNMASKED, Subject, edit, journal, relate, subject

TOLERANCE = 1e-5

Checkpoints = Callable[..., Path]
Truths = Callable[..., Truth]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str, layers: int, seed: int = 0) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            return bert_checkpoint(directory, layers=layers, tokenizer=True, seed=seed)
        checkpoint = soften(t5_checkpoint(directory, layers=layers, tokenizer=True, seed=seed))
        return relate(checkpoint) if family == "related t5" else checkpoint

    return make


@pytest.fixture(scope="module")
def truths(checkpoints: Checkpoints) -> Truths:
    """What is computed once is there for every test."""

    @cache
    def make(family: str, layers: int, preset: str = "masked", *, seed: int = 0, null: bool = True) -> Truth:
        return Truth(checkpoints(family, layers, seed), PROMPTS, KINDS[preset], null=null)

    return make


def search(
    tested: Subject,
    drops: int,
    *,
    beam: int = 3,
    grain: Any = "sub-block",
    reuse: bool = False,
    kept_in: Journal | None = None,
    report: Any = None,
) -> list[Step]:
    return beam_search(
        tested.discrepancy,
        tested.space,
        tested.space.items(grain),
        beam=beam,
        reached=lambda state: len(state.order) == drops,
        reuse=reuse,
        journal=kept_in or journal(),
        name="test",
        report=report or (lambda done, best: lambda share: None),
    )


def compare(steps: list[Step], truth: list[list[tuple[float, tuple[Item, ...]]]]) -> None:
    assert len(steps) == len(truth)
    for step, expected in zip(steps, truth, strict=True):
        assert [state.order for state in step.beam] == [order for _, order in expected]
        assert [state.value for state in step.beam] == pytest.approx([value for value, _ in expected], rel=TOLERANCE)


@pytest.mark.parametrize("beam", [1, 2, 3])
@pytest.mark.parametrize("grain", ["sub-block", "layer"])
@pytest.mark.parametrize(("family", "layers"), [("t5", 4), ("bert", 3)])
def test_algorithm_1(
    family: str, layers: int, grain: Any, beam: int, *, checkpoints: Checkpoints, truths: Truths
) -> None:
    tested, drops = subject(checkpoints(family, layers)), 6 if grain == "sub-block" else layers
    if family == "bert" and grain == "sub-block":
        drops = 4
    units, items = 2 * layers, tested.space.items(grain)
    expected = naive.skip(truths(family, layers), units, items, beam, drops)
    compare(search(tested, drops, beam=beam, grain=grain), expected)


@pytest.mark.parametrize("preset", ["unmasked", "read masked"])
def test_algorithm_1_in_a_pipeline_without_a_mask(preset: str, checkpoints: Checkpoints, truths: Truths) -> None:
    tested = subject(checkpoints("t5", 3), KINDS[preset])
    expected = naive.skip(truths("t5", 3, preset), 6, tested.space.items("sub-block"), 2, 5)
    compare(search(tested, 5, beam=2), expected)


@pytest.mark.parametrize("seed", [1, 2])
def test_algorithm_1_on_other_weights(seed: int, checkpoints: Checkpoints, truths: Truths) -> None:
    tested = subject(checkpoints("t5", 3, seed))
    expected = naive.skip(truths("t5", 3, seed=seed), 6, tested.space.items("sub-block"), 3, 6)
    compare(search(tested, 6), expected)


def test_a_step_tells_the_least_d_of_every_item(checkpoints: Checkpoints, truths: Truths) -> None:
    tested, truth = subject(checkpoints("t5", 4)), truths("t5", 4)
    before: tuple[State, ...] = (State(tested.space.dense, (), ()),)
    seen_above = 0
    for step in search(tested, 5):
        for item in tested.space.items("sub-block"):
            values = [truth(naive.without(8, (*state.order, item))) for state in before if item not in state.order]
            name = str(item[0])
            assert (name in step.candidates) + (name in step.above) <= bool(values)
            if item not in before[0].order:  # what only others may still drop can lead to a set that is there already
                assert name in step.candidates or name in step.above
            if name in step.candidates:  # several parents may lead to it; of losers any may have been measured whole
                assert min(abs(step.candidates[name] / value - 1) for value in values) < TOLERANCE
                if min(values) < step.beam[-1].value * (1 - TOLERANCE):
                    assert step.candidates[name] == pytest.approx(min(values), rel=TOLERANCE)
            if name in step.above:
                seen_above += 1
                assert step.above[name] <= min(values) * (1 + TOLERANCE)
                assert step.above[name] > step.beam[-1].value
        before = step.beam
    assert seen_above > 0


def test_a_state_knows_every_d_on_its_way(checkpoints: Checkpoints, truths: Truths) -> None:
    tested, truth = subject(checkpoints("t5", 4)), truths("t5", 4)
    for state in search(tested, 5)[-1].beam:
        assert state.arrangement == naive.without(8, state.order)
        prefixes = [naive.without(8, state.order[: count + 1]) for count in range(5)]
        assert list(state.values) == pytest.approx([truth(prefix) for prefix in prefixes], rel=TOLERANCE)
        candidates = [Candidate(prefix, 0) for prefix in prefixes]
        # The same shares, which a race sums up at once and `exact` in two terms.
        assert list(state.values) == pytest.approx([it.value for it in tested.discrepancy.exact(candidates)], rel=1e-15)
        assert state.value == state.values[-1]


@pytest.mark.parametrize(("cache_bytes", "reuse"), [(0, False), (0, True), (30_000, True)])
def test_memory_changes_no_bit(cache_bytes: int, reuse: bool, checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints("related t5", 3)
    assert search(subject(checkpoint, cache_bytes=cache_bytes), 4, reuse=reuse) == search(
        subject(checkpoint), 4, reuse=reuse
    )


def _identity(layer: int) -> Callable[[dict[str, torch.Tensor]], None]:
    """T5 is pre-norm: a sub-block whose output projection is zero adds nothing."""

    def change(weights: dict[str, torch.Tensor]) -> None:
        weights[f"encoder.block.{layer}.layer.0.SelfAttention.o.weight"].zero_()
        weights[f"encoder.block.{layer}.layer.1.DenseReluDense.wo.weight"].zero_()

    return change


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("preset", [MASKED, UNMASKED], ids=lambda it: it.name)
def test_a_layer_that_does_nothing_goes_first_and_costs_nothing(preset: Any, reuse: bool, tmp_path: Path) -> None:
    checkpoint = edit(soften(t5_checkpoint(tmp_path, tokenizer=True)), _identity(1))
    [first, second, third] = search(subject(checkpoint, preset), 3, reuse=reuse)
    assert {state.order for state in first.beam[:2]} == {((2,),), ((3,),)}
    assert second.beam[0].order == ((2,), (3,))
    assert second.beam[0].values == (0.0, 0.0)
    assert third.beam[0].value > 0.01
    [layer] = search(subject(checkpoint, preset), 1, grain="layer")
    assert (layer.beam[0].order, layer.beam[0].values) == (((2, 3),), (0.0,))


def test_the_null_prompt_decides(checkpoints: Checkpoints, truths: Truths) -> None:
    """On these weights the prompts alone would drop another unit than prompts and null prompt together do."""
    choices = {}
    for null in (True, False):
        truth = truths("bert", 3, seed=6, null=null)
        values = {unit: truth(naive.without(6, [(unit,)])) for unit in range(6)}
        choices[null], second = sorted(values, key=values.__getitem__)[:2]
        assert values[second] > 1.1 * values[choices[null]]
        [step] = search(subject(checkpoints("bert", 3, 6), null=null), 1)
        assert step.beam[0].order == ((choices[null],),)
    assert choices[True] != choices[False]


def test_a_beam_that_holds_everything_is_an_exhaustive_search(checkpoints: Checkpoints, truths: Truths) -> None:
    tested, truth = subject(checkpoints("t5", 3, 1)), truths("t5", 3, seed=1)
    for count, step in enumerate(search(tested, 6, beam=64), start=1):
        subsets = itertools.combinations(range(6), count)
        values = {subset: truth(naive.without(6, [(unit,) for unit in subset])) for subset in subsets}
        found = [tuple(sorted(unit for (unit,) in state.order)) for state in step.beam]
        assert found == sorted(values, key=values.__getitem__)


def test_a_set_of_units_is_in_the_beam_once(checkpoints: Checkpoints) -> None:
    for reuse in (False, True):
        for step in search(subject(checkpoints("related t5", 4)), 3, beam=6, reuse=reuse):
            sets = [frozenset(state.order) for state in step.beam]
            assert len(set(sets)) == len(sets) == 6


def _extensions_by_hand(state: State, items: list[Item]) -> Iterator[tuple[Item, Arrangement]]:
    """Of one state, every item dropped, and filled with the nearest kept layer on either side."""
    for item in items:
        if item in state.order:
            continue
        dropped = tuple(None if unit in item else unit for unit in state.arrangement)
        yield item, dropped
        layer = item[0] // 2
        for side in (range(layer - 1, -1, -1), range(layer + 1, len(dropped) // 2)):
            whole = [
                other for other in side if all(dropped[2 * other + unit % 2] == 2 * other + unit % 2 for unit in item)
            ]
            if whole:
                yield (
                    item,
                    tuple(
                        2 * whole[0] + unit % 2 if unit in item else unit
                        for unit in state.arrangement
                    ),
                )  # fmt: skip


@pytest.mark.parametrize("reuse", [False, True])
def test_what_candidates_share_is_computed_once_and_nothing_else_is_kept(reuse: bool, checkpoints: Checkpoints) -> None:
    """On a single chunk: counted by hand, and looked up where the states are kept."""
    tested = subject(checkpoints("related t5", 4), prompts=PROMPTS[:1], null=False)
    [_, chunk] = tested.engine.chunks
    steps = search(tested, 3, beam=1, reuse=reuse)
    kept_states = {tuple(range(length)) for length in range(9)}  # the dense encoder's own
    computed, state, ran = 8, State(tested.space.dense, (), ()), set()
    for step in steps:
        for item, arrangement in _extensions_by_hand(state, tested.space.items("sub-block")):
            if not reuse and arrangement[item[0]] is not None:
                continue
            sequence = executed(arrangement)
            computed += len(sequence) - max(n for n in range(len(sequence) + 1) if sequence[:n] in kept_states)
            fork = next(at for at in range(8) if arrangement[at] != state.arrangement[at])
            shared = executed(arrangement[:fork])
            kept_states |= {shared[:length] for length in range(len(shared) + 1)}
            ran |= {sequence[:length] for length in range(1, len(sequence) + 1)}
        [state] = step.beam
    assert tested.engine.evaluated == computed * chunk.size
    assert {each for each in ran if tested.engine.cache.get((1, each)) is not None} == kept_states & ran


@pytest.mark.parametrize("grain", ["sub-block", "layer"])
@pytest.mark.parametrize(("family", "layers"), [("related t5", 4), ("bert", 3)])
def test_the_beam_of_skrr_plus_looks_at_re_use_at_once(
    family: str, layers: int, grain: Any, checkpoints: Checkpoints, truths: Truths
) -> None:
    tested, truth = subject(checkpoints(family, layers)), truths(family, layers)
    items = tested.space.items(grain)
    states = (State(tested.space.dense, (), ()),)
    reused = 0
    for step in search(tested, layers - 1, beam=2, grain=grain, reuse=True):
        best: dict[frozenset[Item], tuple[float, Arrangement]] = {}
        for state in states:
            for item, arrangement in _extensions_by_hand(state, items):
                group = frozenset((*state.order, item))
                best[group] = min(
                    best.get(group, (float("inf"), ())), (truth(arrangement), arrangement), key=lambda it: it[0]
                )
        expected = sorted(best.values(), key=lambda pair: pair[0])[:2]
        # Where two arrangements run the same sequence, transformers cannot tell them apart but by rounding.
        assert [executed(state.arrangement) for state in step.beam] == [executed(each) for _, each in expected]
        assert [state.value for state in step.beam] == pytest.approx([value for value, _ in expected], rel=TOLERANCE)
        for state in step.beam:
            Plan("t5", tuple(naive.sources(state.arrangement)))  # raises where a source is not kept
            assert set(range(2 * layers)) - set(state.arrangement) == {unit for item in state.order for unit in item}
            reused += sum(unit not in (None, place) for place, unit in enumerate(state.arrangement))
        states = step.beam
    assert reused > 0


@pytest.mark.parametrize(
    ("before", "item", "expected"),
    [
        ((0, 1, 2, 3, 4, 5), (2,), [(0, 1, 0, 3, 4, 5), (0, 1, 4, 3, 4, 5)]),
        ((0, 1, 2, 3, 4, 5), (0,), [(2, 1, 2, 3, 4, 5)]),
        ((0, 1, 2, 3, 4, 5), (5,), [(0, 1, 2, 3, 4, 3)]),
        ((0, 1, 2, 3, 4, 5), (2, 3), [(0, 1, 0, 1, 4, 5), (0, 1, 4, 5, 4, 5)]),
        # The nearest that is kept, not the nearest: layer 1 is dropped, or re-uses.
        ((0, 1, None, 3, 4, 5), (4,), [(0, 1, None, 3, 0, 5)]),
        ((0, 1, 0, 3, 4, 5), (4,), [(0, 1, 0, 3, 0, 5)]),
        # Whoever re-used the dropped unit goes the same way.
        ((2, 1, 2, 3, 2, 5, 6, 7), (2,), [(6, 1, 6, 3, 6, 5, 6, 7)]),
        # A layer of which only a half is kept cannot stand for a whole one.
        ((0, 1, None, 3, 4, 5), (4, 5), [(0, 1, None, 3, 0, 1)]),
        ((None, 1, 2, None, 4, 5), (4, 5), []),
    ],
)
def test_what_may_run_in_a_dropped_items_places(before: Arrangement, item: Item, expected: list[Arrangement]) -> None:
    assert list(filled(before, drop(before, [item]), item)) == expected
    for arrangement in expected:
        assert set(range(len(before))) - set(arrangement) == set(range(len(before))) - set(before) | set(item)
        assert kept(arrangement, 0) == kept(drop(before, [item]), 0)


def test_a_search_that_was_killed_goes_on_where_it_stood(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("t5", 4)
    with Journal(tmp_path / "journal", {}, ALONE, resume=False) as first:
        some = search(subject(checkpoint), 3, kept_in=first)
    tested = subject(checkpoint)
    with Journal(tmp_path / "journal", {}, ALONE, resume=True) as second:
        assert search(tested, 3, kept_in=second) == some
        assert tested.engine.evaluated == 0
        assert search(tested, 6, kept_in=second) == search(subject(checkpoint), 6)


def test_progress_is_told(checkpoints: Checkpoints) -> None:
    begun: list[tuple[int, tuple[Item, ...]]] = []
    told: list[list[float]] = []

    def report(done: int, best: State) -> Callable[[float], None]:
        begun.append((done, best.order))
        told.append([])
        return told[-1].append

    steps = search(subject(checkpoints("t5", 3)), 3, report=report)
    assert begun == list(enumerate([(), *(step.beam[0].order for step in steps[:-1])]))
    assert all(shares == sorted(shares) and shares[-1] == 1 for shares in told)


def test_overflow_of_every_extension_is_said(checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("bert", 3), projection=lambda rows: rows * 1e30)
    with pytest.raises(InputError, match="overflow whatever is dropped next"):
        search(tested, 1)
