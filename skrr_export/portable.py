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
    pieces = library.encode(tokenizer.preset.prepare("a cat"))
    prefix, suffix = _frame(tokenizer.ids("a cat"), pieces)

    def ids(text: str, max_length: int | None = None) -> list[int]:
        room = None if max_length is None else max_length - len(prefix) - len(suffix)
        return [*prefix, *library.encode(text)[:room], *suffix]

    def agrees(prompt: str) -> bool:
        return tokenizer.ids(prompt) == ids(tokenizer.preset.prepare(prompt))

    def check_truncated(prompts: Sequence[str], *, negative: bool) -> None:
        preset = tokenizer.preset.negative if negative else tokenizer.preset
        tokens = tokenizer(prompts, negative=negative)
        for prompt, row, mask in zip(prompts, tokens.input_ids, tokens.attention_mask, strict=True):
            if row[mask != 0].tolist() != ids(preset.prepare(prompt), preset.max_length):
                raise InputError(f"{library.kind} gives other ids for {prompt!r}, cut to {preset.max_length} tokens")

    prompts = [*_PROBES, *default_prompts(), *calibration_prompts()]
    for prompt in prompts:
        if not agrees(prompt):
            raise InputError(f"{library.kind} gives other ids for {prompt!r}")
    check_truncated(_PROBES, negative=False)
    if tokenizer.preset.negative != tokenizer.preset:
        check_truncated(prompts, negative=True)
    return TokenizerEntry(
        kind=library.kind,
        file=library.file,
        data=library.data,
        prefix=tuple(prefix),
        suffix=tuple(suffix),
        pad=tokenizer.pad_id,
        padding_side=tokenizer.backend.padding_side,
        special=tuple(token for token in tokenizer.special_tokens if not agrees(f"a {token} b")),
    )


def _frame(ids: Sequence[int], pieces: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """What stands before and after the pieces."""
    for begin in range(len(ids) - len(pieces) + 1):
        if list(ids[begin : begin + len(pieces)]) == list(pieces):
            return ids[:begin], ids[begin + len(pieces) :]
    raise InputError("it gives other ids for 'a cat'")
