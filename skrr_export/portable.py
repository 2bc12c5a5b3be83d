"""How runtimes without `transformers` tokenise: by a C++ library that was seen to give the same ids.

It gets the text that the tokenizer would get, with what the pipeline puts around the prompt.

SentencePiece where the tokenizer has its model, as T5's and UMT5's have; else OpenVINO Tokenizers, which knows the
WordPiece, BPE and Unigram tokenizers of the Hugging Face library, if that is installed.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from skrr_export.errors import InputError
from skrr_export.manifest import TOKENIZER, TokenizerEntry
from skrr_export.prompts import calibration_prompts, default_prompts

if TYPE_CHECKING:
    from skrr_export.tokenization import Tokenizer

SENTENCEPIECE_MODEL = "spiece.model"
"""Among a tokenizer's files; `transformers` builds its own tokenizer from it."""
OPENVINO_FILES = ("tokenizer.openvino.xml", "tokenizer.openvino.bin")
"""The converted tokenizer in the bundle: its graph, and its vocabulary."""
_PROBES = (
    "", " ", "  two  spaces ", "tab\tand\nnewline\r\n", "ﬁ ligature ①", "zero\u200bwidth", "no-break\u00a0space",
    "e\u0301 é", "ideographic\u3000space", "\u2028 line", "\uff26\uff35\uff2c\uff2c\u3000\uff57\uff49\uff44\uff45",
    "\x01control\x7f", "👩‍👩‍👧", "▁ x ▁", "ünïcödé 漢字 слово 한국어", "x" * 300, "a b " * 600, "\ufeffbom",
    "soft\u00adhyphen", "it's 1234 don't",
)  # fmt: skip
"""What tokenizers treat in different ways, compared beside ordinary prompts."""

_Encode = Callable[[str], Sequence[int]]
"""A prompt to ids, without special tokens."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the manifest says of it, and the files that it needs beside the tokenizer's own."""

    entry: TokenizerEntry
    files: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class _Library:
    """A way to tokenise."""

    kind: str
    file: str
    data: str | None
    encode: _Encode
    files: Mapping[str, bytes]


def find_recipe(tokenizer: Tokenizer, directory: Path) -> Recipe | None:
    """The first recipe that gives the ids a tokenizer gives, on some 400 prompts; `None`: no library is at hand.

    Args:
        tokenizer: as `transformers` runs it.
        directory: where its files lie.

    Raises:
        InputError: those at hand give other ids; the message tells for which prompt.
    """
    refusal = None
    for find in (_sentencepiece, _openvino):
        try:
            library = find(tokenizer, directory)
            if library is not None:
                return Recipe(_compare(tokenizer, library), library.files)
        except InputError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    return None


def _sentencepiece(_: Tokenizer, directory: Path) -> _Library | None:
    import sentencepiece

    model = directory / SENTENCEPIECE_MODEL
    if not model.is_file():
        return None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    except (OSError, RuntimeError) as error:
        raise InputError(f"SentencePiece cannot read {model}: {error}") from error
    return _Library("sentencepiece", f"{TOKENIZER}/{model.name}", None, processor.encode, {})


def _openvino(tokenizer: Tokenizer, _: Path) -> _Library | None:
    if importlib.util.find_spec("openvino_tokenizers") is None:
        return None
    import openvino
    from openvino_tokenizers import convert_tokenizer

    try:
        model = convert_tokenizer(tokenizer.backend, add_special_tokens=False)
        for number, operation in enumerate(model.get_ordered_ops()):  # named after a counter of the process otherwise
            operation.set_friendly_name(f"{operation.get_type_name()}_{number}")
        model.inputs[0].get_tensor().set_names({"text"})
        compiled = openvino.Core().compile_model(model, "CPU")
        with tempfile.TemporaryDirectory() as folder:
            graph, data = (Path(folder, name) for name in OPENVINO_FILES)
            openvino.save_model(model, graph, compress_to_fp16=False)
            files = {path.name: path.read_bytes() for path in (graph, data)}
    except Exception as error:  # whatever its parser trips over
        raise InputError(f"OpenVINO Tokenizers cannot convert it: {_first_line(error)}") from error

    def encode(prompt: str) -> Sequence[int]:
        try:
            ids: Sequence[int] = compiled(np.array([prompt]))["input_ids"][0].tolist()
        except RuntimeError as error:
            raise InputError(f"OpenVINO Tokenizers cannot encode {prompt!r}: {_first_line(error)}") from error
        return ids

    return _Library("openvino", *OPENVINO_FILES, encode, files)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _compare(tokenizer: Tokenizer, library: _Library) -> TokenizerEntry:
    """What the manifest says of a library that gives the same ids."""
    if tokenizer.backend.truncation_side != "right":
        raise InputError("it truncates on the left")
    preset, prompts = tokenizer.preset, [*_PROBES, *default_prompts(), *calibration_prompts()]
    framed = _Framed.by(library, tokenizer.ids("a cat"), preset.prepare("a cat"))
    for prompt in prompts:
        if tokenizer.ids(prompt) != framed.ids(preset.prepare(prompt)):
            raise InputError(f"{library.kind} gives other ids for {prompt!r}")
    _check_truncated(tokenizer, framed, _PROBES, negative=False)
    if preset.negative != preset:
        _check_truncated(tokenizer, framed, prompts, negative=True)
    return TokenizerEntry(
        kind=library.kind,
        file=library.file,
        data=library.data,
        prefix=framed.prefix,
        suffix=framed.suffix,
        pad=tokenizer.pad_id,
        padding_side=tokenizer.backend.padding_side,
        special=tuple(token for token in tokenizer.special_tokens if not _finds(tokenizer, framed, token)),
    )


@dataclass(frozen=True, slots=True)
class _Framed:
    """A library, and the tokenizer's own special tokens around what it gives."""

    library: _Library
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    @classmethod
    def by(cls, library: _Library, ids: Sequence[int], text: str) -> _Framed:
        """Find out what stands around the library's pieces of a text in the ids that the tokenizer gives."""
        pieces = list(library.encode(text))
        for begin in range(len(ids) - len(pieces) + 1):
            end = begin + len(pieces)
            if list(ids[begin:end]) == pieces:
                return cls(library, tuple(ids[:begin]), tuple(ids[end:]))
        raise InputError("it gives other ids for 'a cat'")

    def ids(self, text: str, max_length: int | None = None) -> list[int]:
        """The ids of a text, truncated or whole."""
        room = None if max_length is None else max_length - len(self.prefix) - len(self.suffix)
        return [*self.prefix, *self.library.encode(text)[:room], *self.suffix]


def _check_truncated(tokenizer: Tokenizer, framed: _Framed, prompts: Sequence[str], *, negative: bool) -> None:
    preset = tokenizer.preset.negative if negative else tokenizer.preset
    tokens = tokenizer(prompts, negative=negative)
    for prompt, row, mask in zip(prompts, tokens.input_ids, tokens.attention_mask, strict=True):
        if row[mask != 0].tolist() != framed.ids(preset.prepare(prompt), preset.max_length):
            kind = framed.library.kind
            raise InputError(f"{kind} gives other ids for {prompt!r}, cut to {preset.max_length} tokens")


def _finds(tokenizer: Tokenizer, framed: _Framed, token: str) -> bool:
    """Whether a token that a prompt spells out becomes what it does in transformers; the prompt is not cleaned."""
    preset = tokenizer.preset
    text = f"{preset.prefix}a {token} b{preset.suffix}"
    found = tokenizer.backend(text, truncation=False, add_special_tokens=preset.special_tokens, verbose=False)
    return list(found["input_ids"]) == framed.ids(text)
