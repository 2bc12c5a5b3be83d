"""UMT5 graphs against transformers, under any plan; tolerances as for T5, in `test_t5`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.checkpoint import open_checkpoint
from skrr_export.encoders import recognise, select
from skrr_export.measure.verify import verify
from skrr_export.plan import Plan
from skrr_export.targets import open_target
from tests import reference
from tests.bundles import (
    PLAN,
    SPECIAL_CASES,
    error_against_transformers,
    examples,
    export,
    overflowing,
    plans,
    random_ids,
    random_mask,
    relative_error,
    soften,
)
from tests.checkpoints import t5_checkpoint
from tests.reference import Sources

TOLERANCE = 5e-5

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    @cache
    def make(layers: int) -> Path:
        return soften(t5_checkpoint(tmp_path_factory.mktemp("umt5"), layers=layers, umt5=True))

    return make


@pytest.mark.parametrize("masked", [True, False], ids=["masked", "unmasked"])
def test_any_plan_equals_transformers(masked: bool, checkpoints: Callable[[int], Path], tmp_path: Path) -> None:
    @examples(6)
    @given(
        sources=st.integers(1, 5).flatmap(plans),
        batch=st.integers(1, 4),
        sequence=st.integers(1, 60),
        seed=st.integers(0, 2**32),
    )
    def check(sources: Sources, batch: int, sequence: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        mask = random_mask(random, batch, sequence) if masked else None
        ids = random_ids(random, batch, sequence)
        assert error_against_transformers(checkpoints(len(sources)), tmp_path, sources, ids, mask) < TOLERANCE

    check()


@pytest.mark.parametrize(("sources", "masked"), SPECIAL_CASES)
def test_special_plan_equals_transformers(
    sources: Sources, masked: bool, checkpoints: Callable[[int], Path], tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    mask = random_mask(random, 3, 30) if masked else None
    ids = random_ids(random, 3, 30)
    assert error_against_transformers(checkpoints(len(sources)), tmp_path, sources, ids, mask) < TOLERANCE


def test_each_attention_owns_its_table(checkpoints: Callable[[int], Path]) -> None:
    """A T5's only table stays when the first attention is skipped; here each goes with its attention."""
    opened = open_checkpoint(checkpoints(3))
    encoder = recognise(opened)
    tensors = select(opened, encoder, Plan("umt5", ((None, 0), (1, 1), (1, 2)))).tensors
    assert [name for name in (each.name for each in tensors) if "relative" in name] == [
        "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
    ]


def test_fp16_is_rescaled_and_runs_as_such(checkpoints: Callable[[int], Path], tmp_path: Path) -> None:
    large = overflowing(soften(t5_checkpoint(tmp_path / "large", layers=4, umt5=True)))
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 23), random_mask(random, 3, 23)
    bundle = export(large, tmp_path / "b", PLAN, dtype="fp16", targets=("onnx", "pt2"))
    assert (bundle.manifest.rescaling or {})["residual"] > 0
    hidden = open_target(bundle, "pt2").encode(ids, mask)["last_hidden_state"].astype(np.float32)
    assert relative_error(hidden, reference.encode(large, PLAN, ids, mask)) < 2e-2
    for target in ("onnx", "pt2"):
        for checkpoint in (None, large):
            report = verify(bundle, open_target(bundle, target), reference=checkpoint)
            assert report.passed, report.failures
