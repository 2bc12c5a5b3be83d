"""Two independent truths agree: `skrr_export.measure.reference` and `tests.reference`, which share no code.

They run the same fp32 kernels of torch on the same numbers; what differs is how the plan is applied. Where T5's skipped
sub-blocks add an exact zero, and BERT's are not run, even the bits are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export.bundle import Bundle
from skrr_export.errors import CheckpointError
from skrr_export.measure.reference import dense_reference, planned_reference
from tests import reference
from tests.bundles import SPECIAL_PLANS, examples, export, plans, random_ids, random_mask, relative_error, soften
from tests.checkpoints import bert_checkpoint, t5_checkpoint
from tests.reference import Sources

TOLERANCE = 1e-6
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(scope="module", autouse=True)
def _without_graphs() -> Iterator[None]:
    """No reference reads the graph, which is what takes an export its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("skrr_export.targets.onnx.graph.build", lambda *_, **__: b"")
        yield


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("checkpoints")
    return {
        "t5": soften(t5_checkpoint(directory / "t5")),
        "t5, with a decoder": t5_checkpoint(directory / "t5d", decoder=True, gated=False),
        "bert": bert_checkpoint(directory / "bert"),
        "bert, with a head": bert_checkpoint(directory / "berth", head=True),
    }


def _check(
    bundle: Bundle, checkpoint: Path, sources: Sources | None, directory: Path | None, *, masked: bool, seed: int = 0
) -> None:
    random = np.random.default_rng(seed)
    ids = random_ids(random, 3, int(random.integers(1, 60)))
    mask = random_mask(random, *ids.shape) if masked else None
    theirs = reference.encode(checkpoint, sources, ids, mask, rounded_to=DTYPES[bundle.manifest.dtype.name])
    ours = planned_reference(bundle, directory)(ids, mask)
    assert ours.dtype == np.float32
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("kind", ["t5", "bert"])
@pytest.mark.parametrize("from_bundle", [True, False], ids=["bundle's weights", "checkpoint's weights"])
def test_truths_agree_on_any_plan(kind: str, from_bundle: bool, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    @examples(10)
    @given(sources=plans(3), masked=st.booleans(), seed=st.integers(0, 2**32))
    def check(sources: Sources, masked: bool, seed: int) -> None:
        bundle = export(checkpoints[kind], tmp_path / "bundle", sources)
        directory = None if from_bundle else checkpoints[kind]
        _check(bundle, checkpoints[kind], sources, directory, masked=masked, seed=seed)

    check()


@pytest.mark.parametrize("kind", ["t5", "bert"])
@pytest.mark.parametrize("sources", [plan for plan in SPECIAL_PLANS.values() if len(plan) == 3])
def test_truths_agree_on_special_plans(
    kind: str, sources: Sources, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    bundle = export(checkpoints[kind], tmp_path / "bundle", sources)
    for directory in (None, checkpoints[kind]):
        _check(bundle, checkpoints[kind], sources, directory, masked=True)


@pytest.mark.parametrize("kind", ["t5", "t5, with a decoder", "bert", "bert, with a head"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_truths_agree_on_every_precision(kind: str, dtype: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """transformers keeps T5's `wo` in fp32 where it loads fp16; a bundle rounds it, and so must its reference."""
    sources = [(0, 2), (0, None), (2, 2)]
    bundle = export(checkpoints[kind], tmp_path / "bundle", sources, dtype=dtype)
    for directory in (None, checkpoints[kind]):
        _check(bundle, checkpoints[kind], sources, directory, masked=True)


@pytest.mark.parametrize("kind", ["t5", "t5, with a decoder", "bert", "bert, with a head"])
def test_dense_reference_is_the_plain_model(kind: str, checkpoints: dict[str, Path]) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 20), random_mask(random, 3, 20)
    for given_mask in (None, mask):
        truth = reference.encode(checkpoints[kind], None, ids, given_mask)
        assert np.array_equal(dense_reference(checkpoints[kind])(ids, given_mask), truth)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_truth_itself_is_the_plain_model_when_everything_is_kept(kind: str, checkpoints: dict[str, Path]) -> None:
    random = np.random.default_rng(0)
    ids, mask = random_ids(random, 3, 20), random_mask(random, 3, 20)
    everything = [(layer, layer) for layer in range(3)]
    for given_mask in (None, mask):
        plain = reference.encode(checkpoints[kind], None, ids, given_mask)
        assert np.array_equal(reference.encode(checkpoints[kind], everything, ids, given_mask), plain)


def test_half_precision_checkpoint_stays_small(tmp_path: Path) -> None:
    """A T5-XXL reference must fit: its matrices are cast where they are used."""
    model = dense_reference(t5_checkpoint(tmp_path / "t5", dtype=torch.bfloat16))._model
    by_size = {parameter.dtype for parameter in model.parameters() if parameter.ndim == 2}
    assert by_size == {torch.bfloat16, torch.float32}
    linear = [parameter for name, parameter in model.named_parameters() if ".original" in name]
    assert len(linear) == 3 * 7
    assert {parameter.dtype for parameter in linear} == {torch.bfloat16}


def test_directory_that_transformers_cannot_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"transformers cannot load {tmp_path}"):
        dense_reference(tmp_path)
