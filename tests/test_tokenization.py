"""Prompts to ids and embeddings, as the bundle's pipeline does it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skrr_export import encode_prompts
from skrr_export.bundle import Bundle
from skrr_export.errors import BundleError, InputError
from skrr_export.pipelines import PRESETS, Preset, cleaning
from skrr_export.targets.onnx.session import OnnxSession
from skrr_export.tokenization import BATCH, Tokenizer, encode_unconditional
from tests.bundles import export, relative_error, soften
from tests.checkpoints import t5_checkpoint
from tests.pipelines.tokenizers import QWEN3, small_tokenizer

pytestmark = pytest.mark.usefixtures("remembered_traces")

PAD, END, CLS = 0, 1, 3
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


@pytest.mark.parametrize("name", ["flux.1/text_encoder_2", "sd3/text_encoder_3", "pixart-sigma"])
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


def _tokenizer(directory: Path, t5: Path, preset: Preset, **settings: object) -> Tokenizer:
    small_tokenizer("<cls> $A </s>", **settings).save_pretrained(directory)
    return Tokenizer(directory, t5, preset)


@pytest.mark.parametrize(("own", "asked"), [("left", None), ("right", None), ("left", "right"), ("right", "left")])
def test_padding_goes_where_the_pipeline_has_it(own: str, asked: Any, t5: Path, tmp_path: Path) -> None:
    preset = replace(PRESETS["plain"], padding_side=asked)
    tokens = _tokenizer(tmp_path, t5, preset, padding_side=own)(["a", "a b c"])
    side = asked or own
    assert tokens.attention_mask[0, 0 if side == "left" else -1] == 0
    assert tokens.attention_mask[0, -1 if side == "left" else 0] == 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_multiple_is_reached_on_the_left(side: str, t5: Path, tmp_path: Path) -> None:
    plain, padded = (
        _tokenizer(tmp_path / str(multiple), t5, replace(PRESETS["plain"], multiple_of=multiple), padding_side=side)
        for multiple in (1, 16)
    )
    for prompts in (["a"], ["a", "a b c"], ["x" * 12], ["x" * 300, "y"]):
        expected, tokens = plain(prompts), padded(prompts)
        missing = -expected.input_ids.shape[1] % 16
        assert tokens.input_ids.shape[1] == expected.input_ids.shape[1] + missing
        assert (tokens.input_ids[:, :missing] == PAD).all()
        assert not tokens.attention_mask[:, :missing].any()
        assert np.array_equal(tokens.input_ids[:, missing:], expected.input_ids)
        assert np.array_equal(tokens.attention_mask[:, missing:], expected.attention_mask)


def test_padding_can_be_the_end(t5: Path, tmp_path: Path) -> None:
    preset = replace(PRESETS["plain"], pad="eos")
    for folder, pad in (("none", None), ("own", "<pad>")):  # the pipeline changes it in either case
        tokenizer = _tokenizer(tmp_path / folder, t5, preset, pad=pad)
        assert tokenizer.pad_id == END
        tokens = tokenizer(["a", "a b c"])
        assert tokens.input_ids[0].tolist()[-2:] == [END, END]
        assert tokens.attention_mask[0].sum() == 3


@pytest.mark.parametrize("preset", [PRESETS["plain"], PRESETS["flux.1/text_encoder_2"]], ids=lambda it: it.name)
def test_tokenizer_that_cannot_pad_is_refused(preset: Preset, t5: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"the tokenizer in {tmp_path} has no padding token"):
        _tokenizer(tmp_path, t5, preset, pad=None)


def test_special_tokens_are_the_pipelines_choice(t5: Path, tmp_path: Path) -> None:
    """Wherever ids are counted or made."""
    preset = PRESETS["plain"]
    framed = _tokenizer(tmp_path / "framed", t5, preset)
    bare = _tokenizer(tmp_path / "bare", t5, replace(preset, special_tokens=False))
    assert framed.ids("a b") == [CLS, *bare.ids("a b"), END]
    assert framed.lengths(["a", ""]) == [length + 2 for length in bare.lengths(["a", ""])]
    assert framed(["a b"]).input_ids[0].tolist() == [CLS, *bare(["a b"]).input_ids[0], END]


def test_text_around_a_prompt_counts_and_is_truncated(t5: Path, tmp_path: Path) -> None:
    preset = replace(PRESETS["plain"], prefix="before ", suffix=" after", max_length=20)
    tokenizer = _tokenizer(tmp_path, t5, preset)
    plain = _tokenizer(tmp_path, t5, replace(preset, prefix="", suffix="", max_length=512))
    assert tokenizer.ids("x") == plain.ids("before x after")
    assert tokenizer.lengths(["x"]) == plain.lengths(["before x after"])
    cut = tokenizer(["x y " * 100]).input_ids[0]
    assert cut.tolist() == [*plain.ids("before " + "x y " * 100)[:19], END]


def test_negative_prompts_can_be_bare(t5: Path, tmp_path: Path) -> None:
    preset = replace(PRESETS["plain"], prefix="before ", suffix=" after", max_length=20, crop=(1, 4))
    bare = _tokenizer(tmp_path, t5, replace(preset, unconditional="bare"))
    alike = _tokenizer(tmp_path, t5, preset)
    prompts = ["x y " * 100, "z"]
    assert np.array_equal(alike(prompts).input_ids, bare(prompts).input_ids)
    assert np.array_equal(alike(prompts, negative=True).input_ids, bare(prompts).input_ids)
    plain = _tokenizer(tmp_path, t5, replace(preset, prefix="", suffix="", max_length=17))  # less what is cropped
    assert np.array_equal(bare(prompts, negative=True).input_ids, plain(prompts).input_ids)


def test_preset_is_resolved_by_the_tokenizer(t5: Path, tmp_path: Path) -> None:
    tokenizer = _tokenizer(tmp_path, t5, PRESETS["z-image"], chat_template=QWEN3)
    assert tokenizer.preset.resolved
    assert (
        tokenizer.ids("a cat")
        == tokenizer.backend(f"{tokenizer.preset.prefix}a cat{tokenizer.preset.suffix}").input_ids
    )


@pytest.mark.parametrize("template", [None, "{{ messages[0].content | trim }}"])
def test_tokenizer_without_the_chat_template_is_refused(template: str | None, t5: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tokenizer's chat template"):
        _tokenizer(tmp_path, t5, PRESETS["z-image"], chat_template=template)


def test_notes_tell_of_missing_libraries(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = _tokenizer(tmp_path, t5, PRESETS["pixart-alpha"])
    assert captions.notes == ()
    monkeypatch.setattr(cleaning, "has_ftfy", lambda: False)
    assert [len(_tokenizer(tmp_path, t5, PRESETS[name]).notes) for name in ("plain", "pixart-alpha", "wan")] == [
        0,
        1,
        1,
    ]
    assert "lower-cased and stripped, not cleaned" in captions.notes[0]


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


def test_rows_are_those_that_the_pipeline_hands_on(bundle: Bundle) -> None:
    """Of more prompts than fit in one call, whose longest sets the number of rows."""
    prompts = ["x" * length for length in range(BATCH + 3)]
    preset = replace(PRESETS["plain"], crop=(0, 1), padding_rows="packed", max_rows=BATCH)
    plain = encode_prompts(OnnxSession(bundle), prompts)
    ours = encode_prompts(OnnxSession(_under(bundle, preset)), prompts)
    assert ours.keys() == {*plain, "output_mask"}
    for name in ("input_ids", "attention_mask"):
        assert np.array_equal(ours[name], plain[name])
    assert ours["output_mask"].sum(axis=1).tolist() == [min(length, BATCH) for length in range(BATCH + 3)]
    assert np.array_equal(ours["output_mask"], plain["attention_mask"][:, 1 : BATCH + 1])
    expected = plain["last_hidden_state"][:, 1 : BATCH + 1] * ours["output_mask"][..., None]
    assert np.array_equal(ours["last_hidden_state"], expected)


def test_guidance_away_from_nothing(bundle: Bundle) -> None:
    text = replace(PRESETS["plain"], unconditional_text="ugly")
    session = OnnxSession(_under(bundle, text))
    ours, expected = encode_unconditional(session, 3), encode_prompts(session, 3 * ["ugly"])
    assert all(np.array_equal(ours[name], expected[name]) for name in expected)
    zeros = encode_unconditional(OnnxSession(_under(bundle, replace(text, unconditional="zeros"))), 2)
    assert zeros["last_hidden_state"].shape == (2, 5, 37)
    assert not zeros["last_hidden_state"].any()
    with pytest.raises(InputError, match="no prompt given"):
        encode_unconditional(session, 0)


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
