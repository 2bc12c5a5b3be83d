"""Hidden states that are computed once change no bit of any result, and exactly as much is computed as has to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.calibration import Chunk
from skrr_export.search.activations import ActivationEngine, TensorCache
from skrr_export.search.space import Arrangement
from tests.bundles import examples, plans, random_mask, soften
from tests.checkpoints import T5_DIMENSIONS, bert_checkpoint, t5_checkpoint
from tests.search.subjects import MASKED, PLENTY, UNMASKED, calibration_of, eager

LAYERS = 3
STATE = 4 * T5_DIMENSIONS["d_model"]  # bytes a token
PROMPTS = ["one", "two or three words", "", "a few words more than that", "x", "and another"]

ARRANGEMENTS = plans(LAYERS).map(
    lambda sources: tuple(
        None if layer is None else 2 * layer + kind for pair in sources for kind, layer in enumerate(pair)
    )
)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=LAYERS, tokenizer=True))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_checkpoint(tmp_path_factory.mktemp("bert"), layers=LAYERS, tokenizer=True)


def engine(checkpoint: Path, cache_bytes: int, *, masked: bool = True) -> ActivationEngine:
    chosen = calibration_of(checkpoint, MASKED if masked else UNMASKED, PROMPTS, (10, 30))
    return ActivationEngine(eager(checkpoint, masked=masked), (chosen.null, *chosen.chunks), cache_bytes)


def without_a_cache(engine: ActivationEngine, number: int, arrangement: Arrangement) -> torch.Tensor:
    """The same sub-blocks, one after the other."""
    chunk = engine.chunks[number]
    with torch.inference_mode():
        activations = engine.encoder.start(chunk.input_ids, chunk.attention_mask)
        for unit in arrangement:
            if unit is not None:
                activations["hidden"] = engine.encoder.sub_block(unit, activations)
        return engine.encoder.finish(activations)["last_hidden_state"][torch.from_numpy(chunk.counted)]


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_no_request_can_tell_whether_there_is_a_cache(family: str, masked: bool, t5: Path, bert: Path) -> None:
    checkpoint = {"t5": t5, "bert": bert}[family]
    fresh = engine(checkpoint, 0, masked=masked)
    budgets = st.one_of(st.sampled_from([0, PLENTY]), st.integers(0, 40 * 30 * STATE))
    requests = st.lists(
        st.tuples(st.integers(0, len(fresh.chunks) - 1), ARRANGEMENTS, st.integers(0, 2 * LAYERS)),
        min_size=1,
        max_size=8,
    )

    @examples(25)
    @given(budgets, requests)
    def check(budget: int, requests: list[tuple[int, Arrangement, int]]) -> None:
        tested = engine(checkpoint, budget, masked=masked)
        for number, arrangement, fork in requests:
            output = tested.output(number, arrangement, fork)
            assert output.dtype == torch.float32
            assert torch.equal(output, without_a_cache(fresh, number, arrangement))

    check()


def test_states_on_the_way_are_those_after_each_sub_block(t5: Path) -> None:
    tested = engine(t5, PLENTY)
    chunk = tested.chunks[1]
    with torch.inference_mode():
        activations = tested.encoder.start(chunk.input_ids, chunk.attention_mask)
        for length, unit in enumerate((2, 1, 4, 3)):
            assert torch.equal(tested.hidden(1, (2, 1, 4, 3)[:length], 4), activations["hidden"])
            activations["hidden"] = tested.encoder.sub_block(unit, activations)


DENSE = (0, 1, 2, 3, 4, 5)


def work(tested: ActivationEngine, *requests: tuple[int, Arrangement, int]) -> list[int]:
    """The sub-blocks that each request runs, in turn."""
    counts = []
    for number, arrangement, fork in requests:
        before = tested.evaluated
        tested.output(number, arrangement, fork)
        blocks, rest = divmod(tested.evaluated - before, tested.chunks[number].size)
        assert rest == 0
        counts.append(blocks)
    return counts


def test_without_memory_everything_is_computed_each_time(t5: Path) -> None:
    tested = engine(t5, 0)
    assert work(tested, (1, DENSE, 6), (1, DENSE, 6), (1, (0, 1, 2, 3, 4, None), 5), (2, DENSE, 0)) == [6, 6, 5, 6]
    assert tested.evaluated == 17 * tested.chunks[1].size + 6 * tested.chunks[2].size


def test_what_stands_before_the_change_is_computed_once(t5: Path) -> None:
    tested = engine(t5, PLENTY)
    assert work(
        tested,
        (1, DENSE, 6),  # kept whole
        (1, DENSE, 6),
        (1, (0, 1, None, 3, 4, 5), 2),  # units 3 to 5 after a new beginning
        (1, (0, 1, None, 3, 4, 5), 2),  # what comes after the fork is not kept
        (1, (0, 1, None, 3, None, 5), 4),  # now 0, 1, 3 is worth keeping
        (1, (0, 1, None, 3, 4, 5), 4),  # found
        (1, (0, 1, 3, None, 4, 5), 6),  # the same sequence in other places
        (2, DENSE, 0),  # another chunk has its own states
        (2, DENSE, 0),
        (1, (None,) * 6, 0),
    ) == [6, 0, 3, 3, 2, 2, 2, 6, 6, 0]


def test_every_position_dropped_in_turn_costs_the_rest_of_the_encoder(t5: Path) -> None:
    """One step of a beam from the dense encoder: 5 + 4 + ... sub-blocks, and the prefixes once."""
    tested = engine(t5, PLENTY)
    candidates = [(1, (*DENSE[:at], None, *DENSE[at + 1 :]), at) for at in range(6)]
    assert work(tested, *candidates) == [5, 5, 4, 3, 2, 1]


def test_a_chunk_of_another_number_is_not_taken_for_this_one(t5: Path) -> None:
    chosen = calibration_of(t5, MASKED, ["abc", "def"], (4, 4))
    assert [chunk.input_ids.shape for chunk in chosen.chunks] == [(1, 4), (1, 4)]
    tested = ActivationEngine(eager(t5), (chosen.null, *chosen.chunks), PLENTY)
    assert not torch.equal(tested.output(1, DENSE, 6), tested.output(2, DENSE, 6))
    assert torch.equal(tested.output(1, DENSE, 6), without_a_cache(tested, 1, DENSE))


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_only_the_rows_that_count_come_out(masked: bool, t5: Path) -> None:
    random = np.random.default_rng(0)
    ids, counted = random.integers(0, 300, (3, 7)), random_mask(random, 3, 7) != 0
    chunk = Chunk(ids, np.ones((3, 7), np.int64) if masked else None, counted)
    tested = ActivationEngine(eager(t5, masked=masked), [chunk], PLENTY)
    everything = ActivationEngine(
        eager(t5, masked=masked), [Chunk(ids, chunk.attention_mask, np.ones((3, 7), bool))], 0
    )
    rows = everything.output(0, DENSE, 6)[torch.from_numpy(counted).flatten()]
    assert torch.equal(tested.output(0, DENSE, 6), rows)
    assert rows.shape == (counted.sum(), T5_DIMENSIONS["d_model"])


@given(
    budget=st.integers(0, 40),
    operations=st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 20)), max_size=40),
)
def test_cache_against_a_list_in_order_of_use(budget: int, operations: list[tuple[str, int]]) -> None:
    """A size of 0 reads the key, any other writes a tensor of that many bytes."""
    cache, order = TensorCache(budget), []  # the least recently used first
    for key, size in operations:
        used = [entry for entry in order if entry[0] == key]
        order = [entry for entry in order if entry[0] != key]
        if size == 0:
            found = cache.get(key)
            assert found is (used[0][1] if used else None)
            order += used
        else:
            tensor = torch.zeros(size, dtype=torch.uint8)
            cache.put(key, tensor)
            if size <= budget:
                order.append((key, tensor))
            while sum(entry[1].nbytes for entry in order) > budget:
                order.pop(0)
    for key in "abcde":
        assert cache.get(key) is next((entry[1] for entry in order if entry[0] == key), None)
