"""Prompts to ids and embeddings, as the bundle's pipeline does it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skrr_export import encode_prompts
from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.pipelines import PRESETS, Preset
from skrr_export.targets.onnx.session import OnnxSession
from skrr_export.tokenization import BATCH, Tokenizer
from tests.bundles import export, relative_error, soften
from tests.checkpoints import t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")

PAD, END = 0, 1
TOLERANCE = 5e-5
"""Of two orders of the same fp32 sums, as in tests/encoders/test_t5.py."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), tokenizer=True))


@pytest.fixture(scope="module")
def bundle(t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(t5, tmp_path_factory.mktemp("bundle") / "bundle")


def _under(bundle: Bundle, preset: Preset) -> Bundle:
    return replace(bundle, manifest=replace(bundle.manifest, pipeline=preset))


def _rows(ids: np.ndarray, mask: np.ndarray) -> list[list[int]]:
    return [row[kept != 0].tolist() for row, kept in zip(ids, mask, strict=True)]


def test_longest_prompt_sets_the_length(bundle: Bundle) -> None:
    tokens = Tokenizer.of_bundle(bundle)(["four", "", "a"])
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == np.int64
    assert tokens.input_ids.shape == tokens.attention_mask.shape == (3, 5)
    assert tokens.attention_mask.sum(axis=1).tolist() == [5, 1, 2]
    assert tokens.input_ids[1].tolist() == [END, PAD, PAD, PAD, PAD]
    assert tokens.input_ids[:, :1].min() > PAD


@pytest.mark.parametrize("name", ["flux.1", "sd3", "pixart-sigma"])
def test_pipeline_that_pads_to_the_full_length_always_does(name: str, bundle: Bundle) -> None:
    tokens = Tokenizer.of_bundle(_under(bundle, PRESETS[name]))(["a", "long " * 200])
    assert tokens.input_ids.shape == (2, PRESETS[name].max_length)
    assert tokens.attention_mask.sum(axis=1).tolist() == [2, PRESETS[name].max_length]


def test_prompt_that_is_too_long_is_cut_and_still_ended(bundle: Bundle) -> None:
    tokens = Tokenizer.of_bundle(bundle)(["x" * 600])
    assert tokens.input_ids.shape == (1, 512)
    assert tokens.input_ids[0, -1] == END
    assert len(set(tokens.input_ids[0, :-1].tolist())) == 1


def test_only_pipelines_that_lowercase_do(bundle: Bundle) -> None:
    plain, pixart = Tokenizer.of_bundle(bundle), Tokenizer.of_bundle(_under(bundle, PRESETS["pixart-sigma"]))
    loud, quiet = (plain([text]) for text in ("  A Red CUBE\n", "a red cube"))
    assert _rows(loud.input_ids, loud.attention_mask) != _rows(quiet.input_ids, quiet.attention_mask)
    assert np.array_equal(pixart(["  A Red CUBE\n"]).input_ids, pixart(["a red cube"]).input_ids)


def test_ids_are_those_of_transformers(bundle: Bundle, t5: Path) -> None:
    import transformers

    prompts = ["a cat", "", "two  spaces", "naïve 漢字 🦊", "</s> inside"]
    theirs = transformers.AutoTokenizer.from_pretrained(t5)(prompts, padding=True, return_tensors="np")
    ours = Tokenizer.of_bundle(bundle)(prompts)
    assert np.array_equal(ours.input_ids, theirs["input_ids"])
    assert np.array_equal(ours.attention_mask, theirs["attention_mask"])


def test_no_prompt_is_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="no prompt given"):
        Tokenizer.of_bundle(bundle)([])
    with pytest.raises(InputError, match="no prompt given"):
        encode_prompts(OnnxSession(bundle), [])


def test_bundle_without_a_tokenizer_says_how_to_give_it_one(tmp_path: Path) -> None:
    bare = export(t5_checkpoint(tmp_path / "t5"), tmp_path / "bundle")
    with pytest.raises(BundleError, match="export again with --tokenizer DIRECTORY"):
        Tokenizer.of_bundle(bare)


def test_damaged_tokenizer_is_named(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.directory, tmp_path / "bundle")
    (tmp_path / "bundle" / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=f"cannot load the tokenizer in {tmp_path}/bundle/tokenizer"):
        Tokenizer.of_bundle(Bundle(tmp_path / "bundle", bundle.manifest))


def test_every_prompt_gets_its_own_row_whatever_the_batch(bundle: Bundle) -> None:
    """More prompts than fit in one call, of many lengths; each as if it were alone."""
    session = OnnxSession(bundle)
    prompts = ["x" * length for length in range(2 * BATCH + 3)]
    done = []
    together = encode_prompts(session, prompts, progress=lambda _, count, total: done.append((count, total)))
    assert sorted(together) == ["attention_mask", "input_ids", "last_hidden_state"]
    assert {len(value) for value in together.values()} == {len(prompts)}
    assert done == [(BATCH, len(prompts)), (2 * BATCH, len(prompts)), (len(prompts), len(prompts))]
    for row, prompt in enumerate(prompts):
        alone = encode_prompts(session, [prompt])["last_hidden_state"][0]
        assert relative_error(together["last_hidden_state"][row, : len(alone)], alone) < TOLERANCE


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_fixed_batch_is_filled_up_and_cut_again(
    count: int, t5: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = OnnxSession(export(t5, tmp_path / "bundle", batch=2, sequence=8))
    prompts = [f"p {number}" for number in range(count)]
    ours, free = encode_prompts(fixed, prompts), encode_prompts(OnnxSession(bundle), prompts)
    assert ours["last_hidden_state"].shape == (count, 8, 37)
    assert ours["input_ids"].shape == (count, 8)
    length = free["input_ids"].shape[1]
    assert relative_error(ours["last_hidden_state"][:, :length], free["last_hidden_state"]) < TOLERANCE


def test_mask_reaches_the_encoder_only_where_the_pipeline_passes_it(t5: Path, bundle: Bundle, tmp_path: Path) -> None:
    prompts = ["a", "a much longer prompt"]
    unmasked = encode_prompts(OnnxSession(export(t5, tmp_path / "bundle", masked=False)), prompts)
    masked = encode_prompts(OnnxSession(bundle), prompts)
    assert np.array_equal(masked["attention_mask"], unmasked["attention_mask"])  # told either way
    ours, other = masked["last_hidden_state"], unmasked["last_hidden_state"]
    assert relative_error(ours[1], other[1]) < TOLERANCE  # no padding to attend to
    assert relative_error(ours[0, :2], other[0, :2]) > 1e-2
