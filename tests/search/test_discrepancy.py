"""D is the one that NumPy computes from what transformers gives: for every kind of pipeline, family and projection.

Tolerance: relative. D is a mean of squares of differences as large as the embeddings themselves, which agree to 6e-6
(tests/encoders/test_eager.py); up to 2e-6 was seen. The smallest fault, one row of 200 that does not count, gives 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skrr_export.errors import InputError
from skrr_export.search.discrepancy import Candidate
from skrr_export.search.space import Arrangement, drop, executed, first_difference, put
from skrr_export.search.workers import Workers
from tests.bundles import soften
from tests.checkpoints import BERT_DIMENSIONS, T5_DIMENSIONS, bert_checkpoint, t5_checkpoint
from tests.search.naive import Truth
from tests.search.subjects import CPU, KINDS, MASKED, PROMPTS, UNMASKED, Subject, edit, linear, subject

TOLERANCE = 1e-5
FAMILIES = ["t5 gated", "t5 relu", "bert"]
WIDTHS = {"t5 gated": T5_DIMENSIONS["d_model"], "bert": BERT_DIMENSIONS["hidden_size"]}

ARRANGEMENTS: dict[str, Arrangement] = {
    "one dropped": (0, 1, None, 3, 4, 5),
    "the last dropped": (0, 1, 2, 3, 4, None),
    "several dropped": (None, 1, 2, None, None, 5),
    "re-used": (0, 3, 0, 3, 4, 3),
    "everything dropped": (None,) * 6,
}

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(family: str) -> Path:
        directory = tmp_path_factory.mktemp("checkpoint")
        if family == "bert":
            return bert_checkpoint(directory, tokenizer=True)
        return soften(t5_checkpoint(directory, gated=family == "t5 gated", tokenizer=True))

    return make


def candidates(tested: Subject, arrangements: list[Arrangement]) -> list[Candidate]:
    return [Candidate(each, first_difference(each, tested.space.dense)) for each in arrangements]


def exact(tested: Subject, *arrangements: Arrangement) -> list[float]:
    return [terms.value for terms in tested.discrepancy.exact(candidates(tested, list(arrangements)))]


@pytest.mark.parametrize("preset", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_terms_against_transformers(family: str, preset: Any, checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints(family), preset)
    assert len(tested.engine.chunks) > 3
    truth = Truth(checkpoints(family), PROMPTS, preset)
    found = tested.discrepancy.exact(candidates(tested, list(ARRANGEMENTS.values())))
    for terms, arrangement in zip(found, ARRANGEMENTS.values(), strict=True):
        prompts, null = truth.terms(arrangement)
        assert terms.prompts == pytest.approx(prompts, rel=TOLERANCE)
        assert terms.null == pytest.approx(null, rel=TOLERANCE)
        assert terms.value == terms.prompts + terms.null
    assert tested.discrepancy.scale() == pytest.approx(truth.scale(), rel=TOLERANCE)


def projections(width: int) -> dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[Any], Any]]]:
    """Ours and the truth's, on rows of this width."""
    (weight, bias), (second, _) = linear(0, width, 53), linear(1, 53, 11)
    a, b, c = map(torch.from_numpy, (weight, bias, second))
    return {
        "linear": (lambda rows: rows @ a.T + b, lambda rows: rows @ weight.astype(float).T + bias),
        "two layers": (
            lambda rows: torch.tanh(rows @ a.T + b) @ c.T,
            lambda rows: np.tanh(rows @ weight.astype(float).T + bias) @ second.astype(float).T,
        ),
    }


@pytest.mark.parametrize("preset", [MASKED, UNMASKED], ids=lambda it: it.name)
@pytest.mark.parametrize("name", ["linear", "two layers"])
@pytest.mark.parametrize("family", WIDTHS)
def test_after_a_projection(family: str, name: str, preset: Any, checkpoints: Checkpoints) -> None:
    ours, theirs = projections(WIDTHS[family])[name]
    tested = subject(checkpoints(family), preset, projection=ours)
    truth = Truth(checkpoints(family), PROMPTS, preset, project=theirs)
    for terms, arrangement in zip(
        tested.discrepancy.exact(candidates(tested, list(ARRANGEMENTS.values()))), ARRANGEMENTS.values(), strict=True
    ):
        assert (terms.prompts, terms.null) == pytest.approx(truth.terms(arrangement), rel=TOLERANCE)
    assert tested.discrepancy.scale() == pytest.approx(truth.scale(), rel=TOLERANCE)


def test_what_the_projection_does_not_see_is_no_discrepancy(checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("t5 gated"), projection=lambda rows: rows[:, :5] * 0)
    assert exact(tested, *ARRANGEMENTS.values()) == [0.0] * len(ARRANGEMENTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_dense_encoder_has_none(family: str, checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints(family))
    assert exact(tested, tested.space.dense) == [0.0]


def test_without_the_null_prompt(checkpoints: Checkpoints) -> None:
    tested, plain = subject(checkpoints("bert")), subject(checkpoints("bert"), null=False)
    assert (tested.discrepancy.chunks[0], plain.discrepancy.chunks[0]) == (0, 1)
    assert len(plain.discrepancy.chunks) == len(tested.discrepancy.chunks) - 1
    for arrangement in ARRANGEMENTS.values():
        [with_null] = tested.discrepancy.exact(candidates(tested, [arrangement]))
        [without] = plain.discrepancy.exact(candidates(plain, [arrangement]))
        assert (without.prompts, without.null) == (with_null.prompts, 0.0)
        assert with_null.null > 0
    assert plain.discrepancy.scale() == tested.discrepancy.scale()


def test_two_discrepancies_on_one_engine_have_their_own_targets(checkpoints: Checkpoints) -> None:
    """As in a search: FinerCut's measure sees no projection, the plan's does."""
    tested = subject(checkpoints("bert"))
    ours, _ = projections(WIDTHS["bert"])["linear"]
    other = type(tested.discrepancy)(tested.engine, tested.discrepancy.workers, tested.space.dense, projection=ours)
    alone = exact(subject(checkpoints("bert"), projection=ours), *ARRANGEMENTS.values())
    before = exact(tested, *ARRANGEMENTS.values())
    assert [terms.value for terms in other.exact(candidates(tested, list(ARRANGEMENTS.values())))] == alone
    assert exact(tested, *ARRANGEMENTS.values()) == before


def test_shares_sum_up_to_the_whole(checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("t5 gated"))
    chosen = candidates(tested, list(ARRANGEMENTS.values()))
    shares = tested.discrepancy.shares(chosen, tested.discrepancy.chunks)
    assert shares.shape == (len(chosen), len(tested.engine.chunks))
    assert (shares >= 0).all()
    for terms, row in zip(tested.discrepancy.exact(chosen), shares.tolist(), strict=True):
        assert (terms.null, terms.prompts) == (row[0], math.fsum(row[1:]))
    some = [len(tested.engine.chunks) - 1, 0, 2]
    np.testing.assert_array_equal(tested.discrepancy.shares(chosen[::-1], some), shares[::-1, some])


@pytest.mark.parametrize("cache_bytes", [0, 20_000, 1 << 30])
def test_memory_changes_no_bit(cache_bytes: int, checkpoints: Checkpoints) -> None:
    arrangements = list(ARRANGEMENTS.values())
    assert exact(subject(checkpoints("bert"), cache_bytes=cache_bytes), *arrangements, *arrangements[::-1]) == (
        exact(subject(checkpoints("bert")), *arrangements) + exact(subject(checkpoints("bert")), *arrangements[::-1])
    )


def test_nothing_to_measure(checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("bert"))
    assert tested.discrepancy.exact([]) == []
    assert (tested.discrepancy.naive, tested.engine.evaluated) == (0, 0)


@pytest.mark.parametrize("null", [True, False])
def test_what_one_by_one_would_have_taken(null: bool, checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("bert"), null=null)
    tokens = sum(chunk.input_ids.size for chunk in tested.engine.chunks[0 if null else 1 :])
    exact(tested, *ARRANGEMENTS.values())
    assert tested.discrepancy.naive == tokens * sum(len(executed(each)) for each in ARRANGEMENTS.values())


@dataclass
class Half:
    """One of two processes, which never hears of the other."""

    rank: int
    size: int = 2
    device: torch.device = CPU

    def gather(self, values: Any) -> Any:
        return values


def test_two_processes_have_half_of_the_chunks_each(checkpoints: Checkpoints) -> None:
    checkpoint = checkpoints("t5 gated")
    alone = subject(checkpoint)
    chosen = candidates(alone, list(ARRANGEMENTS.values()))
    whole = alone.discrepancy.shares(chosen, alone.discrepancy.chunks)
    halves = [subject(checkpoint, workers=Half(rank)) for rank in (0, 1)]
    shares = [half.discrepancy.shares(chosen, half.discrepancy.chunks) for half in halves]
    assert (shares[0] == 0)[:, 1::2].all()
    assert (shares[1] == 0)[:, 0::2].all()
    np.testing.assert_array_equal(shares[0] + shares[1], whole)
    scales = [half.discrepancy.scale() for half in halves]
    assert min(scales) > 0
    assert sum(scales) == pytest.approx(alone.discrepancy.scale(), rel=1e-12)
    assert isinstance(alone.discrepancy.workers, Workers)


def _guarded(weights: dict[str, torch.Tensor]) -> None:
    """Unit 1 sets a feature of every token to -9; should it ever be positive again, unit 3 writes infinities."""
    embedding, feature = weights["shared.weight"], 0
    for name, value in weights.items():
        if name.endswith(("o.weight", "wo.weight")):
            value[feature] = 0  # nobody else writes it
    embedding[:, feature] = 1
    for layer, output in ((0, -10.0), (1, 3e38)):
        here = f"encoder.block.{layer}.layer.1."
        weights[here + "layer_norm.weight"][feature] = 1
        weights[here + "DenseReluDense.wi.weight"][0] = 0
        weights[here + "DenseReluDense.wi.weight"][0, feature] = 100
        weights[here + "DenseReluDense.wo.weight"][:, 0] = 0
        weights[here + "DenseReluDense.wo.weight"][feature, 0] = output


def test_overflow_is_infinitely_far(tmp_path: Path) -> None:
    checkpoint = edit(soften(t5_checkpoint(tmp_path, gated=False, tokenizer=True)), _guarded)
    tested, truth = subject(checkpoint), Truth(checkpoint, PROMPTS, MASKED)
    dense = tested.space.dense
    without_1, without_3 = put(dense, 1, None), put(dense, 3, None)
    assert math.isnan(truth(without_1))
    assert math.isfinite(truth(without_3))
    both = drop(dense, [(1,), (3,)])
    found = exact(tested, without_3, without_1, both)
    assert found[1] == math.inf
    assert [found[0], found[2]] == pytest.approx([truth(without_3), truth(both)], rel=TOLERANCE)


def test_square_that_overflows_is_infinitely_far(checkpoints: Checkpoints) -> None:
    tested = subject(checkpoints("bert"), projection=lambda rows: rows * 1e30)
    assert exact(tested, (0, 1, None, 3, 4, 5), tested.space.dense) == [math.inf, 0.0]


@pytest.mark.parametrize("value", [1e39, math.nan], ids=["infinity", "NaN"])
def test_dense_encoder_that_overflows_is_refused(value: float, tmp_path: Path) -> None:
    def spoil(weights: dict[str, torch.Tensor]) -> None:
        weights["encoder.block.1.layer.0.SelfAttention.o.weight"] *= value

    tested = subject(edit(t5_checkpoint(tmp_path, tokenizer=True), spoil))
    with pytest.raises(InputError, match="dense encoder's embeddings are not finite"):
        exact(tested, (0, 1, None, 3, 4, 5))
