"""Calibration prompts: every one is there once, padding is trimmed where nobody can tell, and chunks have a limit."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skrr_export import calibration
from skrr_export.calibration import Calibration, Chunk
from skrr_export.errors import InputError
from skrr_export.pipelines import Preset
from tests import reference
from tests.bundles import examples, relative_error, soften
from tests.checkpoints import bert_checkpoint, byte_tokenizer, t5_checkpoint
from tests.search import naive
from tests.search.subjects import KINDS, MASKED, PROMPTS, UNMASKED, calibration_of, eager

TOLERANCE = 2e-5
"""Of the fp32 sums, as in tests/encoders/test_eager.py."""
PAD, END, CLS = 0, 1, 3

every_kind = pytest.mark.parametrize("preset", KINDS.values(), ids=KINDS)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return soften(t5_checkpoint(tmp_path_factory.mktemp("t5"), layers=2, tokenizer=True))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert_checkpoint(tmp_path_factory.mktemp("bert"), layers=2, tokenizer=True)


def trims(preset: Preset) -> bool:
    """Whether padding reaches nobody."""
    return preset.masked and not preset.reads_padding


def rows(chunks: Sequence[Chunk], width: int) -> Counter[tuple[bytes, bytes]]:
    """Each prompt's ids and the rows of it that count, padded again to the pipeline's width."""
    found: Counter[tuple[bytes, bytes]] = Counter()
    for chunk in chunks:
        short = width - chunk.input_ids.shape[1]
        ids, counted = (np.pad(array, ((0, 0), (0, short))) for array in (chunk.input_ids, chunk.counted))
        assert ids.dtype == np.int64
        assert counted.dtype == np.bool_
        found.update((row.tobytes(), read.tobytes()) for row, read in zip(ids, counted, strict=True))
    return found


@every_kind
def test_every_prompt_is_in_one_chunk_with_the_rows_that_count(preset: Preset, t5: Path) -> None:
    @examples(40)
    @given(
        st.lists(st.text("abcdef AB", max_size=50), min_size=1, max_size=30),
        st.integers(1, 60),
        st.integers(1, 200),
    )
    def check(prompts: list[str], least: int, more: int) -> None:
        found = calibration_of(t5, preset, prompts, (least, least + more))
        ids, mask = naive.tokenise(t5, prompts, preset)
        read = np.ones(ids.shape, bool) if preset.reads_padding else mask == 1
        assert rows(found.chunks, ids.shape[1]) == Counter(
            (row.tobytes(), each.tobytes()) for row, each in zip(ids, read, strict=True)
        )
        assert found.prompts == len(prompts)
        assert found.tokens == read.sum()
        assert sum(chunk.rows for chunk in found.chunks) == read.sum()

    check()


@every_kind
def test_the_encoder_gets_the_mask_that_its_pipeline_gives_it(preset: Preset, t5: Path) -> None:
    found = calibration_of(t5, preset, PROMPTS)
    for chunk in (found.null, *found.chunks):
        if preset.masked:
            assert chunk.attention_mask is not None
            # The byte-level tokenizer has no other way to give 0 than padding.
            np.testing.assert_array_equal(chunk.attention_mask, chunk.input_ids != PAD)
        else:
            assert chunk.attention_mask is None
        assert chunk.size == chunk.input_ids.shape[0] * chunk.input_ids.shape[1]


@every_kind
def test_padding_is_trimmed_where_nobody_can_tell_and_nowhere_else(preset: Preset, t5: Path) -> None:
    found = calibration_of(t5, preset, PROMPTS)
    width = naive.tokenise(t5, PROMPTS, preset)[0].shape[1]
    for chunk in found.chunks:
        longest = int((chunk.input_ids != PAD).sum(axis=1).max())
        assert chunk.input_ids.shape[1] == (longest if trims(preset) else width)


@pytest.mark.parametrize("preset", [preset for preset in KINDS.values() if preset.masked], ids=lambda it: it.name)
@pytest.mark.parametrize("family", ["t5", "bert"])
def test_no_row_that_counts_changes_by_trimming(preset: Preset, family: str, t5: Path, bert: Path) -> None:
    """Against transformers on the batch as the pipeline pads it."""
    checkpoint = {"t5": t5, "bert": bert}[family]
    ids, mask = naive.tokenise(checkpoint, PROMPTS, preset)
    whole = reference.encode(checkpoint, None, ids, mask)
    encoder = eager(checkpoint)
    for chunk in calibration_of(checkpoint, preset, PROMPTS).chunks:
        batch, length = chunk.input_ids.shape
        same = [int(np.flatnonzero((ids[:, :length] == row).all(axis=1))[0]) for row in chunk.input_ids]
        assert len(set(same)) == batch
        with torch.inference_mode():
            activations = encoder.start(chunk.input_ids, chunk.attention_mask)
            for unit in range(4):
                activations["hidden"] = encoder.sub_block(unit, activations)
            hidden = encoder.finish(activations)["last_hidden_state"].numpy()
        truth = whole[same, :length]
        assert relative_error(hidden[chunk.counted], truth[chunk.counted]) < TOLERANCE


@pytest.mark.parametrize(
    ("preset", "family", "ids", "counted"),
    [
        ("masked", "t5", [END], [True]),
        ("masked", "bert", [CLS, END], [True, True]),
        ("masked, fixed", "t5", [END], [True]),
        ("unmasked", "t5", [END] + 19 * [PAD], 20 * [True]),
        ("unmasked", "bert", [CLS, END] + 18 * [PAD], 20 * [True]),
        ("read masked", "t5", [END] + 19 * [PAD], [True] + 19 * [False]),
        ("masked, padding read", "t5", [END] + 19 * [PAD], 20 * [True]),
    ],
)
def test_the_null_prompt_stands_alone(
    preset: str, family: str, ids: list[int], counted: list[bool], *, t5: Path, bert: Path
) -> None:
    null = calibration_of({"t5": t5, "bert": bert}[family], KINDS[preset], PROMPTS).null
    assert null.input_ids.tolist() == [ids]
    assert null.counted.tolist() == [counted]
    assert null.rows == sum(counted)


def test_truncated_prompts_are_counted_and_cut(t5: Path) -> None:
    preset = replace(MASKED, max_length=10)
    prompts = [length * "a" for length in (0, 8, 9, 10, 11, 500)]  # and `</s>`
    found = calibration_of(t5, preset, prompts)
    assert found.truncated == 3
    assert sorted(chunk_rows for chunk in found.chunks for chunk_rows in chunk.counted.sum(axis=1)) == [1, 9] + 4 * [10]
    assert calibration_of(t5, preset, prompts[:3]).truncated == 0


def test_prompts_are_truncated_as_they_are_prepared(t5: Path) -> None:
    preset = replace(KINDS["masked, fixed"], max_length=10)
    assert calibration_of(t5, preset, ["  AAAAAAAAA   "]).truncated == 0
    assert calibration_of(t5, preset, ["  AAAAAAAAAA   "]).truncated == 1


@pytest.mark.parametrize(
    ("chunk_tokens", "logits", "batches"),
    [
        # 64 prompts of 10 tokens are 640, a sixteenth of which are 40
        ((1, 9999), 1 << 21, 16 * [4]),
        ((39, 40), 1 << 21, 16 * [4]),
        ((39, 39), 1 << 21, 21 * [3] + [1]),
        ((160, 9999), 1 << 21, 4 * [16]),
        ((169, 9999), 1 << 21, 4 * [16]),
        ((170, 9999), 1 << 21, 3 * [17] + [13]),
        ((1, 20), 1 << 21, 32 * [2]),
        ((1, 3), 1 << 21, 64 * [1]),  # a prompt that is too long for any chunk has one of its own
        ((1, 9999), 300, 21 * [3] + [1]),
        ((1, 9999), 299, 32 * [2]),
        ((1, 9999), 99, 64 * [1]),
    ],
)
def test_chunks_have_a_limit(
    chunk_tokens: tuple[int, int], logits: int, batches: list[int], t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "LOGITS", logits)
    found = calibration_of(t5, MASKED, [f"{number:09}" for number in range(64)], chunk_tokens)
    assert sorted((len(chunk.input_ids) for chunk in found.chunks), reverse=True) == batches


def test_limits_are_those_of_prompts_of_every_length(t5: Path) -> None:
    @examples(60)
    @given(st.lists(st.integers(0, 39), min_size=1, max_size=40), st.integers(1, 150), st.integers(0, 100))
    def check(lengths: list[int], least: int, more: int) -> None:
        limit = min(max(-(-sum(length + 1 for length in lengths) // 16), least), least + more)
        found = calibration_of(t5, MASKED, [length * "a" for length in lengths], (least, least + more))
        for chunk in found.chunks:
            assert chunk.size <= limit or len(chunk.input_ids) == 1
        # In order of length, the first prompt of each chunk would not have fitted into the one before.
        chunks = sorted(found.chunks, key=lambda chunk: (chunk.counted.sum(axis=1).min(), chunk.input_ids.shape[1]))
        for one, next_one in itertools.pairwise(chunks):
            assert (len(one.input_ids) + 1) * next_one.counted.sum(axis=1).min() > limit

    check()


def test_prompts_of_usual_length_come_first(t5: Path) -> None:
    """A candidate is given up after the first few chunks: those should be typical."""
    found = calibration_of(t5, MASKED, [length * "a" for length in range(16)], (1, 1))
    lengths = [chunk.input_ids.shape[1] for chunk in found.chunks]
    assert sorted(lengths) == list(range(1, 17))
    distances = [abs(length - 8.5) for length in lengths]
    assert distances == sorted(distances)


def test_published_limits_make_chunks_that_fill_a_processor() -> None:
    """Neither depends on the machine: every machine has to add the same sums."""
    assert (calibration.CHUNKS, calibration.CHUNK_TOKENS, calibration.LOGITS) == (16, (512, 8192), 1 << 21)


CROPPED = replace(MASKED, crop=(1, 3), unconditional_text="ugly words")


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, [1, 0, 0, 1, 1]),
        ({"padding_rows": "packed", "max_rows": 2}, [1, 0, 0, 1, 0]),
        ({"crop": (0, 0), "padding": "max_length", "extra_rows": 1}, [1, 1, 1, 1, 1, 1]),
        ({"masked": False, "padding": "max_length", "reads_padding": True, "max_length": 8}, [1, 0, 0, 1, 1, 1, 1, 1]),
    ],
)
def test_only_rows_that_the_pipeline_hands_on_count(changes: dict[str, Any], counted: list[int], t5: Path) -> None:
    found = calibration_of(t5, replace(CROPPED, **changes), ["four"])
    (chunk,) = found.chunks
    assert chunk.counted.tolist() == [[row == 1 for row in counted]]
    assert chunk.input_ids.shape == (1, len(counted))
    assert found.tokens == sum(counted)


def test_rows_of_padding_that_count_are_not_trimmed(t5: Path) -> None:
    """One after each prompt's last token, unless it is as long as the pipeline takes."""
    preset = replace(MASKED, padding="max_length", max_length=9, extra_rows=1)
    found = calibration_of(t5, preset, [length * "a" for length in (1, 4, 30)], (1, 1))
    assert sorted(chunk.input_ids.shape[1] for chunk in found.chunks) == [3, 6, 9]
    assert all(chunk.counted.all() for chunk in found.chunks)
    assert found.null.input_ids.tolist() == [[END, PAD]]
    assert found.null.counted.all()


def test_the_null_prompt_is_the_pipelines_own(t5: Path) -> None:
    text = "ugly words"
    framed = replace(CROPPED, prefix="look: ", suffix="!")
    templated = calibration_of(t5, framed, PROMPTS).null
    assert templated.input_ids.shape == (1, len(f"look: {text}!") + 1)
    assert templated.rows == templated.size - 2
    bare = calibration_of(t5, replace(framed, unconditional="bare"), PROMPTS).null
    assert bare.input_ids.shape == (1, len(text) + 1)
    assert bare.counted.all()


def sha256(checkpoint: Path, preset: Preset, prompts: Sequence[str] = PROMPTS) -> str:
    return calibration_of(checkpoint, preset, prompts).sha256


def test_hash_is_the_same_for_the_same_prompts(t5: Path, bert: Path, tmp_path: Path) -> None:
    assert sha256(t5, MASKED) == sha256(t5, MASKED, tuple(PROMPTS))
    other = t5_checkpoint(tmp_path / "other", layers=1, tokenizer=True, seed=1, d_model=16)
    assert sha256(t5, MASKED) == sha256(other, MASKED)
    assert sha256(t5, MASKED) == sha256(t5, replace(MASKED, name="of another name"))
    assert sha256(t5, MASKED) == sha256(t5, replace(MASKED, max_length=200, padding="max_length"))
    assert sha256(t5, MASKED) != sha256(bert, MASKED)


@every_kind
def test_hash_changes_with_the_prompts(preset: Preset, t5: Path) -> None:
    variants = [
        PROMPTS,
        PROMPTS[:-1],
        [*PROMPTS, PROMPTS[-1]],
        [*PROMPTS[:-1], "rain on a tin rook"],
        [*PROMPTS[:5], "d0g", *PROMPTS[6:]],
        [*PROMPTS, ""],
    ]
    assert len({sha256(t5, preset, prompts) for prompts in variants}) == len(variants)


def test_hash_changes_with_what_the_pipeline_does_to_them(t5: Path) -> None:
    shorter = [replace(UNMASKED, max_length=length) for length in (19, 21)]
    lower = replace(MASKED, lowercase=True)
    presets = [*KINDS.values(), *shorter, lower, replace(MASKED, max_length=12)]
    assert len({sha256(t5, preset) for preset in presets}) == len(presets)
    assert sha256(t5, lower) == sha256(t5, MASKED, [prompt.lower() for prompt in PROMPTS])


def test_hash_sees_which_rows_count_and_which_are_masked(t5: Path) -> None:
    """Presets of one width, so that nothing but the masks tells them apart."""
    kinds = [replace(UNMASKED, masked=masked, reads_padding=read) for masked in (True, False) for read in (True, False)]
    assert len({sha256(t5, kind) for kind in kinds}) == 4


def test_no_prompt_at_all_is_refused(t5: Path) -> None:
    with pytest.raises(InputError, match="no prompt"):
        calibration_of(t5, MASKED, [])


@pytest.mark.parametrize("preset", [MASKED, KINDS["masked, fixed"], KINDS["read masked"]], ids=lambda it: it.name)
@pytest.mark.parametrize("prompts", [["a", "bc"], [""]], ids=["prompts", "empty prompt"])
def test_tokenizer_without_an_end_is_refused(preset: Preset, prompts: list[str], tmp_path: Path) -> None:
    """Of the null prompt it leaves nothing that the denoiser reads, and half of D would be no number."""
    checkpoint = t5_checkpoint(tmp_path, layers=1)
    byte_tokenizer(ending="$A").save_pretrained(checkpoint)
    with pytest.raises(InputError, match="the empty prompt no token"):
        calibration_of(checkpoint, preset, prompts)


def test_a_single_prompt_is_enough(t5: Path) -> None:
    found: Calibration = calibration_of(t5, MASKED, [""])
    assert (found.prompts, found.tokens, len(found.chunks)) == (1, 1, 1)
