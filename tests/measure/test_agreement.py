from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skrr_export.measure.agreement import AgreementMeter, invariance
from skrr_export.measure.cases import Case
from skrr_export.measure.worker import Embeddings
from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import PRESETS, Preset

PLAIN, FLUX = PRESETS["plain"], PRESETS["flux.1/text_encoder_2"]
PROMPTS = ("a cat", "", "two dogs")


def case(prompts: tuple[str, ...] = PROMPTS) -> Case:
    mask = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]])
    return Case("prompts", np.arange(12).reshape(3, 4), mask, prompts)


def embeddings(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(3, 4, 8))


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("preset", [PLAIN, FLUX], ids=["padding is nobody's", "padding is read"])
def test_rows_are_counted_where_they_belong(preset: Preset) -> None:
    ours, truth, mask = embeddings(1), embeddings(2), case().attention_mask == 1
    meter = AgreementMeter(preset)
    meter.add(case(), {LAST.name: ours}, {LAST.name: truth})
    found = meter.result()
    assert found.tokens.relative_l2 == pytest.approx(relative(ours[mask], truth[mask]))
    assert found.padding.relative_l2 == pytest.approx(relative(ours[~mask], truth[~mask]))
    read = np.ones_like(mask) if preset.reads_padding else mask
    assert [one.prompt for one in found.prompts] == list(PROMPTS)
    assert [one.tokens for one in found.prompts] == [3, 1, 4]
    for row, one in enumerate(found.prompts):
        assert one.relative_l2 == pytest.approx(relative(ours[row][read[row]], truth[row][read[row]]))
    assert found.null is not None
    assert found.null.relative_l2 == found.prompts[1].relative_l2
    assert found.projected is None


STACKED = replace(PLAIN, outputs=(Output("hidden_states", (1, 2), "stack"),))
POOLED = replace(PLAIN, outputs=(Output("pooler_output"),))
BOTH = replace(PLAIN, outputs=(LAST, Output("text_embeds")))


def test_stacked_layers_are_compared_token_by_token() -> None:
    layers = [embeddings(seed) for seed in (1, 2)]
    changed = [layers[0], embeddings(3)]
    ours, truth = ({"hidden_states": np.stack(both, axis=1)} for both in (changed, layers))
    meter = AgreementMeter(STACKED)
    meter.add(case(), ours, truth)
    found, mask = meter.result(), case().attention_mask == 1
    assert found.tokens is not None
    assert found.tokens.tokens == 8
    assert found.tokens.relative_l2 == pytest.approx(relative(changed[1][mask], layers[1][mask]))
    assert found.prompts[2].relative_l2 == pytest.approx(relative(changed[1][2], layers[1][2]))
    assert found.pooled is None


def test_a_pooled_output_is_compared_prompt_by_prompt() -> None:
    ours, truth = ({"pooler_output": embeddings(seed)[:, 0]} for seed in (1, 2))
    meter = AgreementMeter(POOLED)
    meter.add(case(), ours, truth)
    found = meter.result()
    assert (found.tokens, found.padding) == (None, None)
    assert found.pooled is not None
    assert found.pooled.tokens == 3
    assert found.pooled.relative_l2 == pytest.approx(relative(ours["pooler_output"], truth["pooler_output"]))
    assert sum(found.cosine_distances.values()) == 3
    for row, one in enumerate(found.prompts):
        assert one.relative_l2 == pytest.approx(relative(ours["pooler_output"][row], truth["pooler_output"][row]))
    assert found.null is not None
    assert found.null.relative_l2 == found.prompts[1].relative_l2


def test_a_pooled_output_does_not_touch_what_is_said_of_tokens() -> None:
    truth = {LAST.name: embeddings(1), "text_embeds": embeddings(2)[:, 0]}
    meter = AgreementMeter(BOTH)
    meter.add(case(), {**truth, "text_embeds": embeddings(3)[:, 0]}, truth)
    found = meter.result()
    assert found.tokens is not None
    assert found.pooled is not None
    assert found.tokens.relative_l2 == 0
    assert (found.pooled.relative_l2 or 0) > 0.5
    assert all(one.relative_l2 == 0 for one in found.prompts)
    assert sum(found.cosine_distances.values()) == 8


def test_only_rows_that_the_denoiser_reads_count_for_a_prompt() -> None:
    cropped = replace(PLAIN, crop=(0, 2))
    ours, truth = embeddings(1), embeddings(2)
    meter = AgreementMeter(cropped, lambda rows: rows)
    meter.add(case(), {LAST.name: ours}, {LAST.name: truth})
    found = meter.result()
    assert found.prompts[2].relative_l2 == pytest.approx(relative(ours[2][2:], truth[2][2:]))
    assert found.prompts[1].relative_l2 is None  # its one token is cropped
    assert found.projected is not None
    assert found.projected.tokens == 3
    assert found.tokens is not None
    assert found.tokens.tokens == 8  # though an error of the export is one wherever it is


def test_the_projection_is_applied_to_both_and_only_to_rows_that_are_read() -> None:
    ours, truth = embeddings(1), embeddings(2)
    matrix = np.random.default_rng(3).normal(size=(8, 3))
    ours[0, 3] = np.nan  # padding
    meter = AgreementMeter(PLAIN, lambda rows: rows @ matrix)
    meter.add(case(), {LAST.name: ours}, {LAST.name: truth})
    mask = case().attention_mask == 1
    projected = meter.result().projected
    assert projected is not None
    assert projected.nonfinite == 0
    assert projected.tokens == 8
    assert projected.relative_l2 == pytest.approx(relative(ours[mask] @ matrix, truth[mask] @ matrix))


def test_random_ids_have_no_prompts_and_no_null_prompt() -> None:
    meter = AgreementMeter(PLAIN)
    meter.add(case(()), {LAST.name: embeddings(1)}, {LAST.name: embeddings(2)})
    assert meter.result().prompts == ()
    assert meter.result().null is None


def test_cosine_distances_are_counted_within_their_bounds() -> None:
    truth = np.zeros((3, 4, 8))
    truth[..., 0] = 1
    ours = truth.copy()
    ours[0, 0] = -ours[0, 0]
    ours[2, 0, 1] = 0.1  # cosine 1 / sqrt(1.01), distance 0.00496
    meter = AgreementMeter(PLAIN)
    meter.add(case(), {LAST.name: ours}, {LAST.name: truth})
    counts = meter.result().cosine_distances
    assert {bound: count for bound, count in counts.items() if count} == {"1e-14": 6, "0.00562": 1, "2": 1}
    bounds = [float(bound) for bound in counts]
    assert bounds == sorted(bounds)


class Encoder:
    """Embeds ids; can be made to depend on what must not matter."""

    def __init__(self, repeat: float = 0, batch: float = 0, length: float = 0) -> None:
        self.repeat, self.batch, self.length, self.calls = repeat, batch, length, 0

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> Embeddings:
        self.calls += 1
        values: Any = np.sin(input_ids[..., None] + np.arange(1, 9))
        scale = 1 + self.repeat * self.calls + self.batch * len(input_ids) + self.length * input_ids.shape[1]
        return {LAST.name: values * scale}


class Pooled(Encoder):
    """Gives the first token's row beside, or alone."""

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> Embeddings:
        rows = super().__call__(input_ids, attention_mask)[LAST.name]
        return {LAST.name: np.sin(input_ids[..., None] + np.arange(8)), "text_embeds": rows[:, 0]}


class Alone(Pooled):
    """Without the rows."""

    def __call__(self, input_ids: np.ndarray, attention_mask: np.ndarray | None) -> Embeddings:
        return {"pooler_output": super().__call__(input_ids, attention_mask)["text_embeds"]}


def found(encoder: Encoder, preset: Preset = PLAIN, **options: bool) -> dict[str, float | None]:
    free = {"free_batch": True, "free_length": True, **options}
    result = invariance(encoder, [case(), Case("small", np.ones((1, 2), int), np.ones((1, 2), int))], preset, **free)
    return {name: getattr(result, name) for name in ("repeat", "batch", "sequence")}


def test_an_encoder_that_depends_on_nothing_else_is_invariant() -> None:
    assert found(Encoder()) == {"repeat": 0, "batch": 0, "sequence": 0}


def test_dependence_on_the_call_is_seen() -> None:
    assert (found(Encoder(repeat=0.01))["repeat"] or 0) > 0.01


def test_dependence_on_the_batch_is_seen() -> None:
    dependent = found(Encoder(batch=0.01))
    assert dependent["repeat"] == 0
    assert dependent["batch"] == pytest.approx(0.02 / 1.03)


def test_dependence_on_the_length_is_seen() -> None:
    dependent = found(Encoder(length=0.01))
    assert dependent["repeat"] == dependent["batch"] == 0
    assert dependent["sequence"] == pytest.approx(0.03 / 1.04)  # the null prompt, of one token


@pytest.mark.parametrize(("encoder", "preset"), [(Pooled, BOTH), (Alone, POOLED)])
def test_dependence_of_a_pooled_output_is_seen(encoder: type[Encoder], preset: Preset) -> None:
    assert found(encoder(), preset) == {"repeat": 0, "batch": 0, "sequence": 0}
    assert (found(encoder(repeat=0.01), preset)["repeat"] or 0) > 0.01
    assert found(encoder(batch=0.01), preset)["batch"] == pytest.approx(0.02 / 1.03)
    assert found(encoder(length=0.01), preset)["sequence"] == pytest.approx(0.03 / 1.04)


def test_padding_on_the_left_is_left_out_too() -> None:
    ids = np.arange(12).reshape(3, 4)
    padded = Case("left", ids, np.array([[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]))
    given = []

    def encode(input_ids: np.ndarray, attention_mask: np.ndarray | None) -> Embeddings:
        given.append((input_ids.tolist(), attention_mask))
        return {LAST.name: np.sin(input_ids[..., None] + np.arange(8))}

    result = invariance(encode, [padded], PLAIN, free_batch=True, free_length=True)
    assert result.sequence == 0
    assert [[7]] in [ids for ids, _ in given]
    assert [[1, 2, 3]] in [ids for ids, _ in given]


def test_what_nobody_promises_or_cannot_be_tried_is_not_measured() -> None:
    assert found(Encoder(length=0.01), FLUX)["sequence"] is None
    assert found(Encoder(), free_length=False)["sequence"] is None
    fixed = found(Encoder(), free_batch=False)
    assert fixed == {"repeat": 0, "batch": None, "sequence": None}


def test_values_that_are_not_finite_are_as_far_as_can_be() -> None:
    calls = []

    def encode(input_ids: np.ndarray, attention_mask: np.ndarray | None) -> Embeddings:
        calls.append(input_ids)
        return {LAST.name: np.full((*input_ids.shape, 8), np.nan if len(calls) > 1 else 1.0)}

    result = invariance(encode, [case()], PLAIN, free_batch=True, free_length=True)
    assert result.repeat == result.batch == result.sequence == 2
