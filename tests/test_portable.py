"""The recipe by which runtimes without transformers tokenise: right where it is given, and else none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from transformers import AutoTokenizer, T5Config

from skrr_export.bundle import open_bundle
from skrr_export.errors import InputError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.manifest import SentencePieceEntry
from skrr_export.pipelines import PRESETS
from skrr_export.portable import sentencepiece_entry
from skrr_export.prompts import default_prompts
from skrr_export.tokenization import Tokenizer
from tests.checkpoints import byte_tokenizer, sentencepiece_tokenizer, t5_checkpoint

pytestmark = pytest.mark.usefixtures("remembered_traces")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_tokenizer(t5_checkpoint(tmp_path_factory.mktemp("portable") / "t5", vocab_size=1100))


@pytest.fixture(scope="module")
def entry(checkpoint: Path) -> SentencePieceEntry:
    tokenizer = Tokenizer(checkpoint, checkpoint, PRESETS["plain"])
    return sentencepiece_entry(tokenizer, checkpoint / "spiece.model", "tokenizer/spiece.model")


def test_the_recipe_gives_what_transformers_gives(entry: SentencePieceEntry, checkpoint: Path) -> None:
    truth = AutoTokenizer.from_pretrained(checkpoint, config=T5Config())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "spiece.model"))
    assert (entry.prefix, entry.suffix, entry.pad) == ((), (1,), 0)
    for prompt in default_prompts():
        assert truth(prompt)["input_ids"] == [*entry.prefix, *pieces.encode(prompt), *entry.suffix]


def test_it_names_the_tokens_that_only_transformers_finds_in_a_prompt(
    entry: SentencePieceEntry, checkpoint: Path
) -> None:
    truth = AutoTokenizer.from_pretrained(checkpoint, config=T5Config())
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "spiece.model"))
    assert {"<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>"} <= set(entry.special)
    for token in entry.special:
        assert truth(f"a {token} b")["input_ids"] != [*pieces.encode(f"a {token} b"), 1]


def test_a_bundle_carries_it(checkpoint: Path, entry: SentencePieceEntry, tmp_path: Path) -> None:
    exported = export_checkpoint(checkpoint, tmp_path / "b")
    assert not exported.warnings
    assert open_bundle(tmp_path / "b").manifest.tokenizer == entry
    assert (tmp_path / "b" / entry.file).read_bytes() == (checkpoint / "spiece.model").read_bytes()


def test_prompts_are_compared_as_the_pipeline_feeds_them(checkpoint: Path, tmp_path: Path) -> None:
    exported = export_checkpoint(checkpoint, tmp_path / "b", ExportOptions(pipeline="pixart-sigma"))
    assert exported.bundle.manifest.pipeline.lowercase
    assert exported.bundle.manifest.tokenizer is not None


def test_a_tokenizer_without_the_model_has_no_recipe(tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    exported = export_checkpoint(checkpoint, tmp_path / "b")
    assert exported.bundle.manifest.tokenizer is None
    assert not exported.warnings


def test_other_ids_mean_no_recipe_and_a_warning(checkpoint: Path, tmp_path: Path) -> None:
    """A `tokenizer.json` beside the model decides in transformers, and need not be the same."""
    other = t5_checkpoint(tmp_path / "t5", vocab_size=1100)
    byte_tokenizer(ending="$A </s>").save_pretrained(other)
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings))
    (other / "spiece.model").write_bytes((checkpoint / "spiece.model").read_bytes())
    exported = export_checkpoint(other, tmp_path / "b")
    assert exported.bundle.manifest.tokenizer is None
    [warning] = exported.warnings
    assert warning.startswith("runtimes other than Python will take token ids only: SentencePiece gives other ids for ")


def test_padding_on_the_left_means_no_recipe(checkpoint: Path) -> None:
    tokenizer = Tokenizer(checkpoint, checkpoint, PRESETS["plain"])
    tokenizer._tokenizer.padding_side = "left"
    with pytest.raises(InputError, match="pads or truncates on the left"):
        sentencepiece_entry(tokenizer, checkpoint / "spiece.model", "x")


def test_a_damaged_model_means_no_recipe(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    tokenizer = Tokenizer(checkpoint, checkpoint, PRESETS["plain"])
    with pytest.raises(InputError, match=r"SentencePiece cannot read .*spiece\.model"):
        sentencepiece_entry(tokenizer, tmp_path / "spiece.model", "x")
