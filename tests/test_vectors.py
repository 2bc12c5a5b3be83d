"""Test vectors: what is in them is transformers' own answer, and a self-test notices what it should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.exporting import ExportOptions
from skrr_export.measure.cases import Case
from skrr_export.outputs import Output
from skrr_export.pipelines import PRESETS, cleaning
from skrr_export.pipelines.cleaning import clean_caption, clean_text
from skrr_export.plan import Plan
from skrr_export.targets import open_target
from skrr_export.vectors import SelfTest, Vector, choose_cases, read, self_test
from tests import reference
from tests.bundles import PLAN, export, forge_hashes, relative_error, soften
from tests.checkpoints import bert_checkpoint, contents, t5_checkpoint
from tests.families.clip import clip_checkpoint
from tests.families.clip import encode as encode_clip

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
        assert vector.expected.keys() == {"last_hidden_state"}
        expected = vector.expected["last_hidden_state"]
        assert expected.dtype == np.float32
        assert relative_error(expected, truth) < 5e-5
        assert len(case.prompts) == len(case.input_ids) == options.get("batch", 1)
    assert read(made)[0].case.prompts[0] == ""  # the null prompt, which every guided image needs
    assert self_test(open_target(made)).passed


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP that takes 77 tokens."""
    directory = tmp_path_factory.mktemp("vectors") / "clip"
    return clip_checkpoint(directory, layers=4, tokenizer=True, max_position_embeddings=77)


@pytest.mark.parametrize(
    ("pipeline", "names"),
    [
        ("flux.1", ["pooler_output"]),
        ("sd3/text_encoder", ["hidden_states.3", "text_embeds"]),
        ("stable-cascade", ["hidden_states.4", "text_embeds"]),
    ],
)
def test_every_output_has_its_own(pipeline: str, names: list[str], clip: Path, tmp_path: Path) -> None:
    made = export(clip, tmp_path / "b", plan=Plan("clip", tuple(PLAN)), pipeline=pipeline, vectors=3)
    for vector in read(made):
        assert list(vector.expected) == names
        given = vector.case.given(made.manifest.pipeline)
        for name, expected in vector.expected.items():
            truth = encode_clip(clip, PLAN, vector.case.input_ids, given, name)
            assert relative_error(expected, truth) < 5e-5
    result = self_test(open_target(made))
    assert result.passed, str(result)
    assert list(result.to_dict()["outputs"]) == names


def test_joined_layers_are_as_they_are_joined(t5: Path, tmp_path: Path) -> None:
    layers = (1, 4)
    for join in ("concatenate", "stack"):
        made = export_with(t5, tmp_path / join, outputs=(Output("hidden_states", layers, join),))
        for vector in read(made):
            case = vector.case
            given = case.given(made.manifest.pipeline)
            states = [reference.encode(t5, PLAN, case.input_ids, given, f"hidden_states.{layer}") for layer in layers]
            truth = np.concatenate(states, axis=-1) if join == "concatenate" else np.stack(states, axis=1)
            assert relative_error(vector.expected["hidden_states"], truth) < 5e-5


def export_with(checkpoint: Path, output: Path, **changes: Any) -> Bundle:
    """Export for a pipeline that is `plain` but for some changes."""
    preset = replace(PRESETS["plain"], name="changed", **changes)
    return export(checkpoint, output, PLAN, preset=preset, vectors=3)


CLEANED = ("caption", "text")


@pytest.mark.parametrize("clean", CLEANED)
def test_cleaning_leaves_prompts_as_they_are(clean: str, t5: Path, tmp_path: Path) -> None:
    """So that a runtime without the libraries for it makes the same ids."""
    made = export_with(t5, tmp_path / "b", clean=clean, prefix="before ", suffix=" after", removed=("a",))
    prompts = [prompt for vector in read(made) for prompt in vector.case.prompts]
    assert len(set(prompts)) == 3
    assert any("a" in prompt for prompt in prompts)  # what the pipeline does beside cleaning, it does for all
    for prompt in prompts:
        assert (clean_text(prompt) if clean == "text" else clean_caption(clean_caption(prompt))) == prompt
    assert self_test(open_target(made)).ids_equal


@pytest.mark.parametrize("clean", CLEANED)
def test_where_prompts_cannot_be_cleaned_they_are_not_told(
    clean: str, t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can would get other ids."""
    monkeypatch.setattr(cleaning, "has_ftfy", lambda: False)
    made = export_with(t5, tmp_path / "b", clean=clean)
    assert [vector.case.prompts for vector in read(made)] == [()] * 3
    assert self_test(open_target(made)).passed


def test_without_a_tokenizer_they_are_random_ids(tmp_path: Path) -> None:
    made = export(bert_checkpoint(tmp_path / "bert"), tmp_path / "b", vectors=3)
    assert [vector.case.prompts for vector in read(made)] == [(), (), ()]
    assert len({vector.case.input_ids.shape for vector in read(made)}) > 1
    result = self_test(open_target(made))
    assert result.passed
    assert result.ids_equal is None
    assert "token ids not checked: passed" in str(result)


def test_random_ids_end_and_are_padded_as_prompts_are(bundle: Bundle) -> None:
    manifest = replace(bundle.manifest, pipeline=replace(bundle.manifest.pipeline, padding_side="left", max_length=20))
    for case in choose_cases(manifest, None, 4, ending=7):
        assert case.input_ids.shape[1] <= 20
        assert (case.input_ids[:, -1] == 7).all()
        assert case.attention_mask[:, -1].all()
    assert not case.attention_mask.all()


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


def _only(session: Any, damage: Callable[[str, np.ndarray], np.ndarray]) -> SelfTest:
    """Test a session whose outputs come out otherwise."""
    run = session._run
    session._run = lambda feed: {name: damage(name, value.copy()) for name, value in run(feed).items()}
    return self_test(session)


@pytest.mark.parametrize("wrong", ["hidden_states.3", "text_embeds"])
def test_the_worse_output_decides_and_is_named(wrong: str, clip: Path, tmp_path: Path) -> None:
    made = export(clip, tmp_path / "b", plan=Plan("clip", tuple(PLAN)), pipeline="sd3/text_encoder", vectors=3)
    result = _only(open_target(made), lambda name, value: value * (1.001 if name == wrong else 1))
    assert not result.passed
    assert f"relative L2 of {wrong} 0.001 (limit 5e-05), cosine distance of " in str(result)
    for name, distances in result.to_dict()["outputs"].items():
        assert (distances["relative_l2"] < 5e-5) == (name != wrong)


def test_of_stacked_layers_the_worst_decides(t5: Path, tmp_path: Path) -> None:
    """One that is small beside the others counts as much."""
    made = export_with(t5, tmp_path / "b", outputs=(Output("hidden_states", (0, 3, 4), "stack"),))

    def damage(name: str, value: np.ndarray) -> np.ndarray:
        value[:, 0] *= 1.001
        return value

    result = _only(open_target(made), damage)
    assert not result.passed
    assert "relative L2 0.001 (limit 5e-05)" in str(result)


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({}, [7, 8, 9]),
        ({"extra_rows": 2}, [9]),
        ({"crop": (0, 2)}, [0, 1, 7, 8, 9]),
        ({"crop": (2, 4), "max_rows": 4}, [2, 3, 6, 7, 8, 9]),
        ({"padding_rows": "zeroed"}, [7, 8, 9]),
        ({"padding_rows": "packed", "crop": (0, 1)}, [0, 7, 8, 9]),
        ({"reads_padding": True}, []),
        ({"reads_padding": True, "max_rows": 5}, [5, 6, 7, 8, 9]),
    ],
)
def test_only_rows_that_the_denoiser_reads_are_judged(
    changes: dict[str, Any], unread: list[int], bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row is made wrong in turn; the vectors are one prompt of 7 tokens and 3 of padding."""
    preset = replace(bundle.manifest.pipeline, **changes)
    session = open_target(replace(bundle, manifest=replace(bundle.manifest, pipeline=preset)))
    mask = (np.arange(10) < 7).astype(np.int64)[None]
    case = Case("0", np.arange(5, 15)[None], mask)
    expected = session.encode(case.input_ids, mask)
    monkeypatch.setattr("skrr_export.vectors.read", lambda bundle: [Vector(case, expected)])
    assert self_test(session).passed
    run, passed = session._run, []
    for row in range(10):

        def damage(feed: Any, row: int = row) -> Any:
            outputs = {name: value.copy() for name, value in run(feed).items()}
            outputs["last_hidden_state"][:, row] *= -1
            return outputs

        session._run = damage  # type: ignore[method-assign]
        passed += [row] if self_test(session).passed else []
    assert passed == unread


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
