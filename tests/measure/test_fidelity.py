"""The numbers of a fidelity report against plain numpy formulas."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.measure.fidelity import QUANTILES, Deviation, DeviationMeter


def _deviation(*batches: tuple[np.ndarray, np.ndarray]) -> Deviation:
    meter = DeviationMeter()
    for ours, reference in batches:
        meter.add(ours, reference)
    return meter.result()


def _random(seed: int, tokens: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    reference = random.normal(size=(tokens, hidden)).astype(np.float32)
    noise = random.normal(size=(tokens, hidden)) * 10.0 ** random.integers(-6, 1)
    return (reference + noise).astype(np.float32), reference


@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 40), hidden=st.integers(1, 20), split=st.integers(0, 40))
def test_numbers_are_those_of_plain_formulas_however_batched(seed: int, tokens: int, hidden: int, split: int) -> None:
    ours, reference = _random(seed, tokens, hidden)
    deviation = _deviation((ours[:split], reference[:split]), (ours[split:], reference[split:]))
    a, b = ours.astype(np.float64), reference.astype(np.float64)
    cosines = [float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in zip(a, b, strict=True)]
    assert (deviation.tokens, deviation.nonfinite) == (tokens, 0)
    # Differences are taken in float64, but kept as float32 for the quantiles: 2^-24 each.
    assert deviation.relative_l2 == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()), rel=1e-12)
    assert deviation.cosine_min == pytest.approx(min(cosines), abs=1e-14)
    assert deviation.cosine_p1 == pytest.approx(np.percentile(cosines, 1), abs=1e-14)
    assert deviation.cosine_mean == pytest.approx(sum(cosines) / tokens, abs=1e-14)
    assert deviation.max_abs == pytest.approx(np.abs(a - b).max(), rel=2**-23)
    assert deviation.error_quantiles is not None
    assert list(deviation.error_quantiles) == [str(quantile) for quantile in QUANTILES]
    for quantile in QUANTILES:
        expected = np.quantile(np.abs(a - b), quantile)
        assert deviation.error_quantiles[str(quantile)] == pytest.approx(expected, rel=2**-22)


def test_quantiles_are_the_median_and_the_tail() -> None:
    assert QUANTILES == (0.5, 0.9, 0.99, 0.9999)
    ours = np.arange(10_001, dtype=np.float32)[:, None]
    deviation = _deviation((ours, np.zeros_like(ours)))
    assert deviation.error_quantiles == {"0.5": 5000, "0.9": 9000, "0.99": 9900, "0.9999": 9999}
    assert deviation.max_abs == 10_000


def test_equal_tokens_deviate_by_nothing() -> None:
    _, reference = _random(0, 9, 5)
    deviation = _deviation((reference, reference))
    assert (deviation.relative_l2, deviation.max_abs) == (0, 0)
    assert deviation.cosine_min == pytest.approx(1, abs=1e-15)


def test_zero_vectors_agree_with_each_other_and_with_nothing_else() -> None:
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert _deviation((zero, zero)).cosine_min == 1
    assert _deviation((zero, one)).cosine_min == 0
    assert _deviation((one, zero)).cosine_min == 0
    assert _deviation((zero, one)).relative_l2 == 1
    assert _deviation((one, zero)).relative_l2 is None  # relative to nothing
    assert _deviation((one, zero)).max_abs == 1
    assert _deviation((zero, one), (one, one)).cosine_mean == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_tokens_are_counted_and_left_out(bad: float) -> None:
    ours, reference = _random(1, 6, 4)
    spoilt = ours.copy()
    spoilt[2, 1] = spoilt[2, 3] = spoilt[5, 0] = bad
    deviation, kept = _deviation((spoilt, reference)), [0, 1, 3, 4]
    expected = asdict(_deviation((ours[kept], reference[kept])))
    assert asdict(deviation) == {**expected, "tokens": 6, "nonfinite": 3}


def test_nothing_measured_is_none_and_not_zero() -> None:
    nothing = [None] * 6
    for deviation, counts in (
        (_deviation(), (0, 0)),
        (_deviation((np.empty((0, 4)), np.empty((0, 4)))), (0, 0)),
        (_deviation((np.full((2, 4), np.nan), np.ones((2, 4)))), (2, 8)),
    ):
        values = list(deviation.to_dict().values())
        assert tuple(values[:2]) == counts
        assert values[2:] == nothing
        assert json.loads(json.dumps(deviation.to_dict(), allow_nan=False)) == deviation.to_dict()


def test_each_stacked_layer_counts_on_its_own() -> None:
    """A layer a thousand times as large as another hides nothing of it."""
    ours, reference = _random(2, 12, 15)
    ours, reference = (values.reshape(12, 3, 5) * np.float32([1e-3, 1, 1e3])[:, None] for values in (ours, reference))
    apart = [_deviation((ours[:, layer], reference[:, layer])) for layer in range(3)]
    together = _deviation((ours[:4], reference[:4]), (ours[4:], reference[4:]))
    assert (together.tokens, together.nonfinite) == (12, 0)
    assert together.relative_l2 == pytest.approx(max(one.relative_l2 or 0 for one in apart), rel=1e-12)
    assert together.cosine_min == pytest.approx(min(one.cosine_min or 0 for one in apart), abs=1e-14)
    assert together.max_abs == max(one.max_abs or 0 for one in apart)
    wrong = reference.copy()
    wrong[:, 0] *= 1.01
    assert _deviation((wrong, reference)).relative_l2 == pytest.approx(0.01, rel=1e-4)
    flat = _deviation((wrong.reshape(12, 15), reference.reshape(12, 15)))
    assert (flat.relative_l2 or 0) < 1e-7
    wrong[3, 0, 0] = np.nan
    assert _deviation((wrong, reference)).nonfinite == 1


def test_quantiles_of_very_wide_rows_are_of_some_of_their_values() -> None:
    """What is kept is spread over all features, and the largest error is exact."""
    ours, reference = _random(3, 40, 30_000)
    ours[7, 12_345] = reference[7, 12_345] + 100
    deviation = _deviation((ours, reference))
    assert deviation.error_quantiles is not None
    errors = np.abs(ours.astype(np.float64) - reference)
    assert deviation.max_abs == pytest.approx(errors.max(), rel=1e-6)
    assert deviation.error_quantiles["0.5"] == pytest.approx(np.quantile(errors, 0.5), rel=0.02)
    assert deviation.error_quantiles["0.99"] == pytest.approx(np.quantile(errors, 0.99), rel=0.02)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 3)), ((2, 3), (2, 4)), ((2, 3), (1, 3)), ((6,), (6,)), ((1, 2, 3, 4),) * 2]
)
def test_shapes_that_differ_or_are_no_tokens_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        _deviation((np.ones(shapes[0]), np.ones(shapes[1])))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_reference_that_is_not_finite_cannot_pass_for_a_small_deviation(bad: float) -> None:
    """Where only the reference is broken, nothing was proven; a NaN among numbers would pass every limit."""
    ours, reference = _random(1, 6, 4)
    reference = reference.copy()
    reference[3, 2] = bad
    deviation = _deviation((ours, reference))
    json.dumps(deviation.to_dict(), allow_nan=False)
    assert deviation.nonfinite > 0


def test_half_precision_is_compared_in_double() -> None:
    """In fp16 the sum of squares would overflow."""
    ours, reference = np.full((1, 4), 60000, np.float16), np.full((1, 4), 30000, np.float16)
    assert _deviation((ours, reference)).relative_l2 == 1
