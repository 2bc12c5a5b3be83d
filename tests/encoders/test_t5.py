"""T5 graphs against transformers, under any plan and for any input.

Tolerance: relative error of the worst row. Two orders of the same fp32 sums give up to 1.2e-5 here (transformers in
fp32 is as far from transformers in fp64); the smallest fault, one bucket edge off by one, gives 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.models.t5.modeling_t5 import T5Attention

from skrr_export.encoders.t5 import PositionBias, T5Encoder
from skrr_export.errors import CheckpointError
from skrr_export.targets.onnx.session import OnnxSession
from tests import reference
from tests.bundles import (
    SPECIAL_CASES,
    error_against_transformers,
    examples,
    export,
    plans,
    random_ids,
    random_mask,
    relative_error,
    soften,
)
from tests.checkpoints import T5_DIMENSIONS, t5_checkpoint
from tests.reference import Sources

TOLERANCE = 5e-5

SHAPES: dict[str, dict[str, Any]] = {
    "v1.1": {},
    "v1.0": {
        "gated": False, "d_model": 64, "num_heads": 4, "d_kv": 8, "d_ff": 96,
        "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    },
    "wide heads, one bucket a distance more": {
        "feed_forward_proj": "gated-silu", "d_model": 24, "num_heads": 5, "d_kv": 16, "d_ff": 40,
        "relative_attention_num_buckets": 16, "relative_attention_max_distance": 40, "layer_norm_epsilon": 1e-3,
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("remembered_traces")

Checkpoints = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(shape: str, layers: int) -> Path:
        return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=layers, **SHAPES[shape]))

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_any_plan_equals_transformers(shape: str, masked: bool, checkpoints: Checkpoints, tmp_path: Path) -> None:
    @examples(8)
    @given(
        sources=st.integers(1, 6).flatmap(plans),
        batch=st.integers(1, 4),
        sequence=st.one_of(st.integers(1, 40), st.integers(1, 200)),
        seed=st.integers(0, 2**32),
    )
    def check(sources: Sources, batch: int, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        mask = random_mask(random, batch, sequence) if masked else None
        ids = random_ids(random, batch, sequence)
        assert error_against_transformers(checkpoints(shape, len(sources)), tmp_path, sources, ids, mask) < TOLERANCE

    check()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_long_inputs_reach_beyond_the_largest_distance(
    shape: str, masked: bool, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    mask = random_mask(random, 4, 600) if masked else None
    sources, ids = [(0, 1), (0, 1)], random_ids(random, 4, 600)
    assert error_against_transformers(checkpoints(shape, 2), tmp_path, sources, ids, mask) < TOLERANCE


@pytest.mark.parametrize(("sources", "masked"), SPECIAL_CASES)
def test_special_plan_equals_transformers(
    sources: Sources, masked: bool, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    mask = random_mask(random, 3, 30) if masked else None
    checkpoint, ids = checkpoints("v1.1", len(sources)), random_ids(random, 3, 30)
    assert error_against_transformers(checkpoint, tmp_path, sources, ids, mask) < TOLERANCE


def test_row_masked_whole_is_finite_and_changes_no_other(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("v1.1", 3)
    ids, mask = random_ids(np.random.default_rng(0), 3, 9), np.ones((3, 9), np.int64)
    session = OnnxSession(export(checkpoint, tmp_path / "bundle"))
    unmasked = session.encode(ids, mask)["last_hidden_state"]
    mask[1] = 0
    hidden = session.encode(ids, mask)["last_hidden_state"]
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[[0, 2]], unmasked[[0, 2]], rtol=1e-5, atol=1e-5)
    # Every key is equally unlikely, so the attention is their plain average; transformers has the same.
    assert relative_error(hidden, reference.encode(checkpoint, None, ids, mask)) < TOLERANCE


@pytest.mark.parametrize("decoder", [False, True])
def test_checkpoint_with_a_decoder_gives_the_same_encoder(decoder: bool, tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", layers=1, decoder=decoder)
    ids = random_ids(np.random.default_rng(0), 2, 7)
    ours = OnnxSession(export(checkpoint, tmp_path / "bundle")).encode(ids)["last_hidden_state"]
    assert relative_error(ours, reference.encode(checkpoint, None, ids)) < TOLERANCE


def test_embedding_may_be_stored_under_the_encoder(checkpoints: Checkpoints, tmp_path: Path) -> None:
    weights = load_file(checkpoints("v1.1", 1) / "model.safetensors")
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((checkpoints("v1.1", 1) / "config.json").read_bytes())
    ids = random_ids(np.random.default_rng(0), 2, 7)
    ours = OnnxSession(export(tmp_path, tmp_path / "bundle")).encode(ids)["last_hidden_state"]
    assert relative_error(ours, reference.encode(checkpoints("v1.1", 1), None, ids)) < TOLERANCE


def _encoder(num_buckets: int, max_distance: int) -> T5Encoder:
    buckets = {"relative_attention_num_buckets": num_buckets, "relative_attention_max_distance": max_distance}
    return T5Encoder.from_config({**T5_DIMENSIONS, "num_layers": 1, "num_heads": 1, **buckets}, ["shared.weight"])


def _buckets(num_buckets: int, max_distance: int, length: int) -> torch.Tensor:
    """Our bucket of every pair of positions: a bias whose table holds each bucket's own number."""
    bias = PositionBias(_encoder(num_buckets, max_distance))
    bias.weight.data = torch.arange(num_buckets).float()[:, None]
    with torch.inference_mode():
        return bias(torch.zeros(1, length, dtype=torch.long))[0, 0]


def _transformers_buckets(num_buckets: int, max_distance: int, length: int) -> torch.Tensor:
    position = torch.arange(length)
    return T5Attention._relative_position_bucket(
        position[None, :] - position[:, None], num_buckets=num_buckets, max_distance=max_distance
    )


@pytest.mark.parametrize("num_buckets", [4, 8, 12, 16, 20, 28, 32, 40, 64, 100, 128, 256])
def test_position_buckets_are_exactly_those_of_transformers(num_buckets: int) -> None:
    smallest = num_buckets // 4 + 1
    for max_distance in (*range(smallest, smallest + 30), 64, 100, 127, 128, 129, 200, 255, 256, 257):
        if max_distance >= smallest:
            length = max_distance + 3
            ours = _buckets(num_buckets, max_distance, length)
            assert torch.equal(ours, _transformers_buckets(num_buckets, max_distance, length).float()), max_distance


@given(quarter=st.integers(1, 40), beyond=st.integers(1, 700))
def test_position_buckets_of_any_size_are_those_of_transformers(quarter: int, beyond: int) -> None:
    num_buckets, max_distance = 4 * quarter, quarter + beyond
    ours = _buckets(num_buckets, max_distance, max_distance + 2)
    assert torch.equal(ours, _transformers_buckets(num_buckets, max_distance, max_distance + 2).float())


def test_published_shape_has_the_published_buckets() -> None:
    """T5's own: 32 buckets up to 128. Distance 127 is in the last bucket, for the edges are logarithmic."""
    row = _buckets(32, 128, 200)[0].int().tolist()
    assert row[:9] == [0, 17, 18, 19, 20, 21, 22, 23, 24]
    assert (row[90], row[91], row[127], row[199]) == (30, 31, 31, 31)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"feed_forward_proj": "sparse-gelu"}, "feed_forward_proj 'sparse-gelu'"),
        ({"feed_forward_proj": "gated-mish"}, "activation 'mish'"),
        ({"d_model": 0}, "'d_model' must be a positive integer"),
        ({"d_kv": None}, "'d_kv' must be a positive integer"),
        ({"num_layers": True}, "'num_layers' must be a positive integer"),
        ({"layer_norm_epsilon": "small"}, "'layer_norm_epsilon' must be a number"),
        ({"relative_attention_num_buckets": 30}, "30 relative attention buckets"),
        ({"relative_attention_max_distance": 2}, "distance of 2"),
    ],
)
def test_configuration_that_is_no_t5_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        T5Encoder.from_config({**T5_DIMENSIONS, "num_layers": 1, **change}, ["shared.weight"])


def test_early_configuration_gets_the_defaults_of_transformers() -> None:
    early = {key: value for key, value in T5_DIMENSIONS.items() if not key.startswith("relative")}
    encoder = T5Encoder.from_config({**early, "num_layers": 1}, ["shared.weight"])
    assert (encoder.num_buckets, encoder.max_distance, encoder.epsilon, encoder.gated) == (32, 128, 1e-6, False)
