"""Test vectors: what is in them is transformers' own answer, and a self-test notices what it should."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.exporting import ExportOptions
from skrr_export.targets import open_target
from skrr_export.vectors import read, self_test
from tests import reference
from tests.bundles import PLAN, export, forge_hashes, relative_error, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("vectors") / "t5", layers=4, tokenizer=True))


@pytest.fixture(scope="module")
def bundle(t5: Path) -> Bundle:
    return export(t5, t5.parent / "b", PLAN, vectors=5)


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle.directory, tmp_path / "b")
    return open_bundle(tmp_path / "b")


@pytest.mark.parametrize("options", [{}, {"pipeline": "sd3"}, {"dtype": "bf16"}, {"dtype": "fp16"}, {"batch": 3}])
def test_they_are_what_transformers_gives(options: dict[str, Any], t5: Path, tmp_path: Path) -> None:
    made = export(t5, tmp_path / "b", PLAN, vectors=4, **options)
    rounded = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.get("dtype", ""))
    for vector in read(made):
        case = vector.case
        truth = reference.encode(t5, PLAN, case.input_ids, case.given(made.manifest.pipeline), rounded_to=rounded)
        assert vector.expected.dtype == np.float32
        assert relative_error(vector.expected, truth) < 5e-5
        assert len(case.prompts) == len(case.input_ids) == options.get("batch", 1)
    assert read(made)[0].case.prompts[0] == ""  # the null prompt, which every guided image needs
    assert self_test(open_target(made)).passed


def test_without_a_tokenizer_they_are_random_ids(tmp_path: Path) -> None:
    made = export(bert_checkpoint(tmp_path / "bert"), tmp_path / "b", vectors=3)
    assert [vector.case.prompts for vector in read(made)] == [(), (), ()]
    assert len({vector.case.input_ids.shape for vector in read(made)}) > 1
    result = self_test(open_target(made))
    assert result.passed
    assert result.ids_equal is None
    assert "token ids not checked: passed" in str(result)


def test_the_same_input_gives_the_same_bytes(t5: Path, bundle: Bundle, tmp_path: Path) -> None:
    assert contents(export(t5, tmp_path / "b", PLAN, vectors=5).directory) == contents(bundle.directory)


def test_a_right_session_passes(bundle: Bundle) -> None:
    result = self_test(open_target(bundle))
    assert result.passed
    assert result.ids_equal
    assert str(result).startswith("self-test: 5 vectors, relative L2 ")
    assert str(result).endswith("token ids equal: passed")


def test_a_weight_that_is_off_by_one_percent_fails(copied: Bundle) -> None:
    tensor = copied.tensors()["encoder.block.0.layer.1.DenseReluDense.wo.weight"]
    content = bytearray(copied.weights.read_bytes())
    values = np.frombuffer(content, np.float32, tensor.numel, tensor.offset)
    values *= 1.01
    copied.weights.write_bytes(content)
    forge_hashes(copied)
    result = self_test(open_target(open_bundle(copied.directory)))
    assert not result.passed
    assert str(result).endswith("token ids equal: FAILED")


def _change_vectors(bundle: Bundle, change: Any) -> Bundle:
    path = bundle.directory / "vectors.safetensors"
    tensors = safetensors.numpy.load_file(path)
    metadata = {"prompts": json.dumps([list(vector.case.prompts) for vector in read(bundle)])}
    change(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata)
    forge_hashes(bundle)
    return open_bundle(bundle.directory)


def test_other_ids_fail(copied: Bundle) -> None:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        metadata["prompts"] = json.dumps([["another prompt"]] * 5)

    result = self_test(open_target(_change_vectors(copied, change)))
    assert result.ids_equal is False
    assert not result.passed
    assert "token ids DIFFERENT: FAILED" in str(result)


def test_values_that_are_not_finite_fail(copied: Bundle) -> None:
    session = open_target(copied)
    run = session._run
    session._run = lambda feed: {name: np.full_like(value, np.nan) for name, value in run(feed).items()}  # type: ignore[method-assign]
    result = self_test(session)
    assert not result.passed
    assert "relative L2 not finite" in str(result)


@pytest.mark.parametrize("name", ["0.input_ids", "4.attention_mask", "2.last_hidden_state"])
@pytest.mark.parametrize("damage", ["missing", "shape"])
def test_malformed_vectors_are_named(name: str, damage: str, copied: Bundle) -> None:
    def change(tensors: dict[str, Any], metadata: dict[str, str]) -> None:
        if damage == "missing":
            del tensors[name]
        else:
            tensors[name] = tensors[name][..., None]

    with pytest.raises(BundleError, match=r"vectors\.safetensors: malformed test vectors: "):
        read(_change_vectors(copied, change))


@pytest.mark.parametrize(
    "prompts", ["", "[]", "5", "[5, 5, 5, 5, 5]", '["a", "b", "c", "d", "e"]', '[["a", "b"], [], [], [], []]']
)
def test_malformed_prompts_are_named(prompts: str, copied: Bundle) -> None:
    with pytest.raises(BundleError, match="malformed test vectors"):
        read(_change_vectors(copied, lambda tensors, metadata: metadata.update(prompts=prompts)))


def test_a_bundle_without_vectors_says_how_to_get_some(t5: Path, tmp_path: Path) -> None:
    made = export(t5, tmp_path / "b")
    with pytest.raises(BundleError, match="b carries no test vectors; export again with --vectors 8"):
        self_test(open_target(made))


@pytest.mark.parametrize("count", [-1, 65])
def test_numbers_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="test vectors must be 0 to 64"):
        ExportOptions(vectors=count)
