"""What becomes of an encoder's rows, by hand; all pipelines are compared with diffusers next door."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.outputs import LAST, Output
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.pipelines.rows import finish, read_rows
from tests.pipelines.test_presets import resolved

PLAIN = PRESETS["plain"]
RIGHT = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
LEFT = RIGHT[:, ::-1]
VALUES = np.arange(1, 11, dtype=np.float32).reshape(2, 5, 1)
NAME = LAST.name


def rows(preset: Preset, mask: np.ndarray) -> tuple[list[list[float]], list[list[int]] | None]:
    found = finish(preset, {NAME: VALUES}, mask)
    told = found.get("output_mask")
    return found[NAME][..., 0].tolist(), None if told is None else told.tolist()


@pytest.mark.parametrize(
    ("changes", "mask", "values", "told"),
    [
        ({}, RIGHT, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], None),
        ({"padding_rows": "zeroed"}, RIGHT, [[1, 2, 3, 0, 0], [6, 0, 0, 0, 0]], None),
        ({"padding_rows": "zeroed"}, LEFT, [[0, 0, 3, 4, 5], [0, 0, 0, 0, 10]], None),
        ({"crop": (0, 2)}, RIGHT, [[3, 4, 5], [8, 9, 10]], [[1, 0, 0], [0, 0, 0]]),
        ({"crop": (1, 3)}, RIGHT, [[1, 4, 5], [6, 9, 10]], [[1, 0, 0], [1, 0, 0]]),
        ({"crop": (0, 2)}, LEFT, [[3, 4, 5], [8, 9, 10]], [[1, 1, 1], [0, 0, 1]]),
        ({"padding_rows": "packed"}, RIGHT, [[1, 2, 3], [6, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ({"padding_rows": "packed"}, LEFT, [[3, 4, 5], [10, 0, 0]], [[1, 1, 1], [1, 0, 0]]),
        ({"padding_rows": "packed", "crop": (0, 1)}, LEFT, [[4, 5], [0, 0]], [[1, 1], [0, 0]]),
        ({"padding_rows": "packed", "crop": (0, 1), "max_rows": 1}, LEFT, [[4], [0]], [[1], [0]]),
        ({"padding_rows": "packed", "crop": (0, 9)}, LEFT, [[], []], [[], []]),
        ({"max_rows": 2}, RIGHT, [[1, 2], [6, 7]], [[1, 1], [1, 0]]),
        ({"extra_rows": 1}, RIGHT, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
        ({"extra_rows": 9}, RIGHT, [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
    ],
)
def test_rows_that_a_pipeline_keeps(changes: dict, mask: np.ndarray, values: list, told: list | None) -> None:
    assert rows(replace(PLAIN, **changes), mask) == (values, told)


@pytest.mark.parametrize(
    ("changes", "mask", "read"),
    [
        ({}, RIGHT, RIGHT),
        ({}, LEFT, LEFT),
        ({"reads_padding": True}, RIGHT, np.ones((2, 5))),
        ({"reads_padding": True, "crop": (0, 2)}, RIGHT, [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1]]),
        ({"reads_padding": True, "max_rows": 3}, RIGHT, [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]),
        ({"padding_rows": "zeroed"}, RIGHT, RIGHT),
        ({"crop": (1, 2)}, RIGHT, [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]]),
        ({"padding_rows": "packed", "crop": (0, 1)}, LEFT, [[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]),
        ({"padding_rows": "packed", "max_rows": 2}, LEFT, [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]),
        ({"extra_rows": 1}, RIGHT, [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]]),
    ],
)
def test_rows_that_reach_the_denoiser(changes: dict, mask: np.ndarray, read: np.ndarray) -> None:
    np.testing.assert_array_equal(read_rows(replace(PLAIN, **changes), mask), np.array(read, bool))


@pytest.mark.parametrize("key", PRESETS)
def test_what_reaches_the_denoiser_is_what_changes_with_the_encoders_rows(key: str) -> None:
    """Of every preset: a row is read if, and only if, the pipeline's own rows under its mask depend on it."""
    preset = replace(resolved(PRESETS[key]), outputs=(LAST,))
    length = preset.max_length
    mask = (np.arange(length) < np.array([[length // 2], [length]])).astype(np.int64)
    values = np.arange(1, 2 * length + 1, dtype=np.float32).reshape(2, length, 1)
    found = finish(preset, {NAME: values}, mask)
    told = found.get("output_mask", mask) != 0
    kept = found[NAME][told | preset.reads_padding]
    assert set(kept[kept != 0]) == set(values[read_rows(preset, mask)].ravel())


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.data())
def test_stacked_layers_are_treated_each_alike(
    layers: int, length: int, begin: int, more: int, data: st.DataObject
) -> None:
    mask = np.array(data.draw(st.lists(st.lists(st.integers(0, 1), min_size=length, max_size=length), min_size=1)))
    padding_rows = data.draw(st.sampled_from(["kept", "zeroed", "packed"]))
    preset = replace(PLAIN, crop=(begin, begin + more), padding_rows=padding_rows)
    stack = Output("hidden_states", tuple(range(layers + 1)), "stack")
    values = np.random.default_rng(0).normal(size=(len(mask), layers + 1, length, 2))
    together = finish(replace(preset, outputs=(stack,)), {stack.name: values}, mask)[stack.name]
    for layer in range(layers + 1):
        alone = finish(preset, {NAME: values[:, layer]}, mask)[NAME]
        np.testing.assert_array_equal(together[:, layer], alone)


def test_pooled_vectors_stay_as_they_are() -> None:
    pooled = Output("text_embeds")
    preset = replace(PLAIN, crop=(0, 2), padding_rows="packed", outputs=(LAST, pooled))
    vectors = np.ones((2, 3), np.float16)
    found = finish(preset, {NAME: VALUES, pooled.name: vectors}, RIGHT)
    assert found[pooled.name] is vectors
    assert list(found) == [NAME, pooled.name, "output_mask"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_zeros_have_the_type_of_the_rest(dtype: type) -> None:
    preset = replace(PLAIN, padding_rows="zeroed")
    assert finish(preset, {NAME: VALUES.astype(dtype)}, RIGHT)[NAME].dtype == dtype


def test_what_is_not_finite_in_padding_is_gone_too() -> None:
    broken = np.where(RIGHT[..., None] == 1, VALUES, np.nan)
    for padding_rows in ("zeroed", "packed"):
        assert np.isfinite(finish(replace(PLAIN, padding_rows=padding_rows), {NAME: broken}, RIGHT)[NAME]).all()
